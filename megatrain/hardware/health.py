"""A look at the nodes before the first step: the one slow or broken GPU that would hold up all the others, by name.

Every rank measures itself; all see all figures, and rank 0 tells the outliers. Takes about a second.
"""

import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

SLOW = {"cuda": 1.5, "cpu": 5.0}  # times the median: equal GPUs differ by a few percent, CPUs that others use by much
_NOISE_SECONDS = {"cuda": 2e-4, "cpu": 0.05}  # and by so much: a moment on a shared core is no fault
_MATMUL = {"cuda": 8192, "cpu": 384}  # rows and columns
_MESSAGE_BYTES = {"cuda": 64 << 20, "cpu": 1 << 20}
_REPEATS = 5
_SKEW_SECONDS = 2.0
_IN_USE_MIB = 1024  # by another process, on a GPU that should be ours alone
_ERRORS = "ecc.errors.uncorrected.volatile.total"
# the field of a slowdown by its present name, by that of drivers before 535, and without
_QUERIES = (f"{_ERRORS},clocks_event_reasons.hw_slowdown", f"{_ERRORS},clocks_throttle_reasons.hw_slowdown", _ERRORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one rank found of itself."""

    host: str
    rank: int
    matmul_seconds: float
    near_seconds: float  # all-reduce of two: with the rank beside it, most often on the same node
    far_seconds: float  # and with the one half a cluster away
    clock_offset: float  # seconds that this host's clock is ahead of rank 0's, give or take a barrier
    complaints: tuple[str, ...] = ()  # of nvidia-smi


def check_health(group: dist.ProcessGroup, device: torch.device) -> list[str]:
    """A sentence per problem, the same on every rank. Collective over `group` (gloo) and the default group."""
    complaints = _nvidia_smi(device)
    matmul = _matmul_seconds(device)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    dist.all_reduce(torch.ones(_MESSAGE_BYTES[device.type] // 4, device=device))  # all can talk to all
    near, far = (_pair_seconds(partner, device) for partner in _partners(rank, size))
    dist.barrier(group)
    now = [0.0] * size
    dist.all_gather_object(now, time.time(), group=group)
    mine = Measurement(
        host=socket.gethostname(),
        rank=rank,
        matmul_seconds=matmul,
        near_seconds=near,
        far_seconds=far,
        clock_offset=now[rank] - now[0],
        complaints=complaints,
    )
    found: list[Measurement] = [mine] * len(now)
    dist.all_gather_object(found, mine, group=group)
    return find_outliers(found, SLOW[device.type], _NOISE_SECONDS[device.type])


def find_outliers(found: Sequence[Measurement], slow: float, noise: float = 0.0) -> list[str]:
    """What is wrong with these measurements, in sentences that name rank and host.

    Args:
        slow: times the median. A slow link shows at both its ends.
        noise: seconds over the median that mean nothing.
    """
    said = [f"rank {one.rank} on {one.host}: {complaint}" for one in found for complaint in one.complaints]
    for what, seconds in (
        ("matmul", [one.matmul_seconds for one in found]),
        ("all-reduce with its neighbour", [one.near_seconds for one in found]),
        ("all-reduce across the cluster", [one.far_seconds for one in found]),
    ):
        usual = statistics.median_low(seconds)  # of two ranks the faster one
        if usual == 0:
            continue
        said += [
            f"rank {one.rank} on {one.host}: its {what} takes {own / usual:.1f} times the median "
            f"({own * 1e3:.1f} ms against {usual * 1e3:.1f} ms)"
            for one, own in zip(found, seconds, strict=True)
            if own > slow * usual and own - usual > noise
        ]
    skewed = {one.host: one.clock_offset for one in found if abs(one.clock_offset) > _SKEW_SECONDS}
    said += [f"{host}: its clock is {offset:+.0f} s off that of {found[0].host}" for host, offset in skewed.items()]
    return said


def _matmul_seconds(device: torch.device) -> float:
    """The best of a few: what the device can do, not what it was interrupted by."""
    size = _MATMUL[device.type]
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    return min(_timed(lambda: a @ a, device) for _ in range(_REPEATS))


def _partners(rank: int, size: int) -> tuple[int, int]:
    """The rank beside this one, and the one half a cluster away; itself where there is none. Each is its partner's."""
    near, half = rank ^ 1, size // 2
    far = rank + half if rank < half else rank - half
    return near if near < size else rank, far if rank < 2 * half else rank


def _pair_seconds(partner: int, device: torch.device) -> float:
    """An all-reduce of two ranks, over the very link between them; the best of a few. 0 without a partner."""
    if partner == dist.get_rank():
        return 0.0
    mine = torch.ones(_MESSAGE_BYTES[device.type] // 4, device=device)
    theirs = torch.empty_like(mine)

    def exchange() -> None:
        pair = [dist.P2POp(dist.isend, mine, partner), dist.P2POp(dist.irecv, theirs, partner)]
        for work in dist.batch_isend_irecv(pair):
            work.wait()
        mine.add_(theirs)

    return min(_timed(exchange, device) for _ in range(_REPEATS))


def _timed(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _nvidia_smi(device: torch.device) -> tuple[str, ...]:
    """Complaints about this rank's GPU: memory in use by others, uncorrectable ECC errors, a hardware slowdown."""
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return ()
    identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    for fields in _QUERIES:
        answered, text = _ask(f"--query-gpu={fields}", identity)
        if answered or "not a valid field" not in text.lower():
            break
    if not answered:
        return (text,)
    # this process has a context on the GPU, and NCCL's buffers: its own entry does not count
    listed, apps = _ask("--query-compute-apps=pid,used_memory", identity)
    return gpu_complaints(text) + (memory_complaints(apps, os.getpid()) if listed else ())


def _ask(query: str, identity: str) -> tuple[bool, str]:
    """Whether nvidia-smi answers, and its answer or a complaint."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits", f"--id={identity}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False, f"nvidia-smi does not answer for {identity}"
    if done.returncode != 0:
        return False, f"nvidia-smi fails for {identity}: {' '.join((done.stdout + done.stderr).split())}"
    return True, done.stdout


def gpu_complaints(answer: str) -> tuple[str, ...]:
    """Of an answer to one of _QUERIES; what a GPU does not support ("[N/A]") is not held against it."""
    line = (answer.strip().splitlines() or [""])[0]
    errors, slowdown = (*(value.strip() for value in line.split(",")), "", "")[:2]
    said = []
    if errors.isdecimal() and int(errors) > 0:
        said.append(f"its GPU has {errors} uncorrectable ECC errors; have the node drained")
    if slowdown == "Active":
        said.append("its GPU is slowed down by hardware (heat or power)")
    return tuple(said)


def memory_complaints(answer: str, own_pid: int) -> tuple[str, ...]:
    """Of nvidia-smi's list of processes (pid, MiB) on a GPU that should be this process's alone.

    In a container the numbers of processes are the host's: where ours is not among them, the largest may be us.
    """
    rows = [[value.strip() for value in line.split(",")] for line in answer.splitlines()]
    used = {int(row[0]): int(row[1]) for row in rows if len(row) == 2 and all(value.isdecimal() for value in row)}
    if used.pop(own_pid, None) is None and used:
        used.pop(max(used, key=lambda pid: used[pid]))
    others = {pid: mebibytes for pid, mebibytes in used.items() if mebibytes > _IN_USE_MIB}
    if not others:
        return ()
    pids = ", ".join(map(str, sorted(others)))
    return (f"{sum(others.values()):,} MiB of its GPU are in use by others (processes {pids})",)
