"""How fast this machine multiplies, copies and communicates:
`python -m megatrain.hardware.benchmark [RANKS]` prints JSON.

The launcher runs it as a process of its own, since it never imports torch, and fits a hardware profile to the result
(launcher/planning/calibrate.py).
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatrain.hardware.device import device_type

_SECONDS = 0.15  # a measurement repeats for at least so long
_SIZES = {"cpu": (128, 256, 512, 1024, 2048), "cuda": (512, 1024, 2048, 4096, 8192, 16384)}
_MESSAGES = {"cpu": (4_096, 65_536, 1 << 20, 1 << 23, 1 << 25), "cuda": (1 << 16, 1 << 20, 1 << 24, 1 << 27, 1 << 30)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="megatrain.hardware.benchmark", description=__doc__)
    parser.add_argument("ranks", type=int, nargs="?", help="of the collectives; default: GPUs, or cores")
    ranks = parser.parse_args().ranks
    cuda = device_type() == "cuda"
    ranks = ranks or (torch.cuda.device_count() if cuda else len(os.sched_getaffinity(0)))
    device = torch.device("cuda" if cuda else "cpu")
    if not cuda:
        torch.set_num_threads(1)  # a core's rate: the ranks of a node share its cores
    print(json.dumps({**_one_rank(device), "ranks": ranks, "all_reduce": _collectives(ranks, device.type)}))


def _one_rank(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    kind = "rocm" if cuda and torch.version.hip else device.type
    memory = torch.cuda.mem_get_info()[0] if cuda else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    sizes = _SIZES[device.type]
    return {
        "device": kind,
        "name": torch.cuda.get_device_name() if cuda else "CPU",
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "bf16": [[size, _matmul(size, torch.bfloat16, device)] for size in sizes],
        "fp32": [[size, _matmul(size, torch.float32, device)] for size in sizes],
        "copy_bytes_a_second": _copy(device),
    }


def _matmul(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a square product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / _seconds(lambda: torch.matmul(a, b), device)


def _copy(device: torch.device) -> float:
    """Bytes a second that a copy moves, read and written."""
    source = torch.zeros(1 << (30 if device.type == "cuda" else 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.numel() / _seconds(lambda: target.copy_(source), device)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The best of several runs; each run repeats the work until it is long enough to time."""
    repeats, best = 1, float("inf")
    work()
    for _ in range(8):
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        _wait(device)
        elapsed = time.perf_counter() - start
        best = min(best, elapsed / repeats)
        if elapsed < _SECONDS:
            repeats = min(4 * repeats, max(repeats + 1, int(repeats * _SECONDS / max(elapsed, 1e-6))))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _collectives(ranks: int, device: str) -> list[list[float]]:
    """[bytes, seconds] of all-reduces; none with one rank."""
    if ranks == 1:
        return []
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    mp.spawn(_rank, (ranks, _port(), device, queue), nprocs=ranks)
    measured: list[list[float]] = queue.get()
    return measured


def _rank(rank: int, ranks: int, port: int, device: str, queue: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=ranks)
    here = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    measured = []
    for size in _MESSAGES[device]:
        x = torch.zeros(size // 4, device=here)
        times = []
        for _ in range(6):
            dist.barrier()
            _wait(here)
            start = time.perf_counter()
            dist.all_reduce(x)
            _wait(here)
            times.append(time.perf_counter() - start)
        measured.append([size, sorted(times)[2]])
    if rank == 0:
        queue.put(measured)
    dist.destroy_process_group()


def _port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
