"""What this machine has for a run, and what has problems. torch is asked in a process of its own."""

import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from launcher.planning.hardware import GIB
from launcher.preflight.machine import DESCRIPTORS_PER_RANK, ask_torch
from megatrain.base.terminal import copyable

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "webdataset", "tensorboard", "tokenizers", "pydantic")
SLURM_COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
_NO_CLUSTER = "`megatrain submit` will not work from here; `scontrol ping` tells when it would"
_MANY_RANKS = 1024
_MINIMUM_DISK = 10 * GIB
_TIMEOUT_SECONDS = 120.0
_CLIENT_SECONDS = 10.0
_IN_USE_MIB = 1024  # on a GPU that nobody uses
_SPEED_MIB = 64
_SLOW_MIB_PER_SECOND = 100.0
_SKEW_SECONDS = 2.0


class Check(NamedTuple):
    name: str
    level: Literal["ok", "warning", "error"]
    value: str
    fix: str = ""


def examine(folder: Path) -> list[Check]:
    """Every check; `folder` is where runs would be written."""
    return [
        *(_python(), *_packages(), _torch(), _gpus(), _machine(), _descriptors(), _compiler(), _network()),
        *(_disk(folder), _disk_speed(folder), _clock(folder), _slurm(), _partitions()),
    ]


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} ({sys.executable})")


def _packages() -> list[Check]:
    return [_package(name) for name in PACKAGES]


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "error", "not installed", f"pip install {name}, or install megatrain again")


def _torch() -> Check:
    found = ask_torch()
    if found is None:
        see = f'see: {copyable(sys.executable)} -c "import torch"'
        return Check("accelerator", "error", "torch cannot be imported", see)
    if found["gpus"]:
        runtime = f"CUDA {found['cuda']}" if found["cuda"] else f"ROCm {found['hip']}"
        return Check("accelerator", "ok", f"{len(found['gpus'])} × {found['gpus'][0]}, {runtime}, NCCL {found['nccl']}")
    if shutil.which("nvidia-smi"):
        fix = "install a CUDA build of torch that the driver can run"
        return Check("accelerator", "error", f"nvidia-smi is here, but {found['why']}", fix)
    return Check("accelerator", "ok", "none: ranks run on the CPU (gloo)")


def _gpus() -> Check:
    """What nvidia-smi says of the health of GPUs, in one line."""
    if shutil.which("nvidia-smi") is None:
        return Check("gpus", "ok", "no nvidia-smi here")
    fields = "index,memory.used,ecc.errors.uncorrected.volatile.total"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    said = _output(command)
    if said is None:
        return Check("gpus", "error", "nvidia-smi fails or does not answer", "see: nvidia-smi; have the node drained")
    rows = [[value.strip() for value in line.split(",")] for line in said.splitlines()]
    broken = [index for index, _, errors in rows if errors.isdecimal() and int(errors)]
    busy = [index for index, used, _ in rows if used.isdecimal() and int(used) > _IN_USE_MIB]
    if broken:
        return Check("gpus", "error", f"uncorrectable ECC errors on {', '.join(broken)}", "have the node drained")
    if busy:
        return Check("gpus", "warning", f"memory in use on {', '.join(busy)}", "see whose: nvidia-smi")
    return Check("gpus", "ok", f"{len(rows)}, their memory free, no uncorrectable ECC errors")


def _network() -> Check:
    """Interfaces that ranks on several nodes could meet over, and the RDMA devices."""
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    up = [name for name in names if _read(Path(f"/sys/class/net/{name}/operstate")) in ("up", "unknown")]
    fabric = Path("/sys/class/infiniband")
    rdma = sorted(path.name for path in fabric.iterdir()) if fabric.is_dir() else []
    value = f"{', '.join(up) or 'no interface is up'}; RDMA: {', '.join(rdma) or 'none'}"
    chosen = {name: os.environ[name] for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if os.environ.get(name)}
    for variable, wanted in chosen.items():
        exact = [name.lstrip("=") for name in wanted.split(",") if not wanted.startswith("^")]
        if exact and not any(name.startswith(prefix) for name in names for prefix in exact):
            return Check(
                "network", "error", f"{variable}={wanted}, and there are {', '.join(names)}", f"fix {variable}"
            )
    if not up:
        return Check("network", "warning", value, "ranks on several nodes need an interface; see: ip -br link")
    return Check("network", "ok", value)


def _machine() -> Check:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Check("machine", "ok", f"{len(os.sched_getaffinity(0))} cores, {memory:.1f} GiB, {platform.platform()}")


def _descriptors() -> Check:
    """Each rank raises its soft limit to the hard one by itself."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        return Check("open files", "ok", "no limit")
    ranks = hard // DESCRIPTORS_PER_RANK
    value = f"at most {hard:,} in a process: enough for {ranks:,} ranks"
    if ranks < _MANY_RANKS:
        return Check("open files", "warning", value, "have the hard limit raised (ulimit -Hn, LimitNOFILE of slurmd)")
    return Check("open files", "ok", value)


def _compiler() -> Check:
    for name in ("gcc", "g++", "clang"):
        if path := shutil.which(name):
            return Check("compiler", "ok", path)
    return Check("compiler", "warning", "none", "torch.compile needs one: install gcc, or set parallel.compile=false")


def _disk(folder: Path) -> Check:
    folder = _nearest(folder)
    free = shutil.disk_usage(folder).free
    value = f"{free / GIB:.0f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", "error", f"{folder} cannot be written", "set run.directory to a folder of yours")
    if free < _MINIMUM_DISK:
        return Check("disk", "warning", value, "checkpoints take 12 bytes per parameter each")
    return Check("disk", "ok", value)


def _disk_speed(folder: Path) -> Check:
    """Writing, to the disk itself: what a checkpoint waits for."""
    place = _nearest(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".megatrain-doctor-") as file:
            block, began = os.urandom(1 << 20), time.perf_counter()
            for _ in range(_SPEED_MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            rate = _SPEED_MIB / (time.perf_counter() - began)
    except OSError as error:
        return Check("disk speed", "error", f"{place}: {error.strerror}", "set run.directory to a folder of yours")
    value = f"{rate:,.0f} MiB/s written to {place}"
    if rate < _SLOW_MIB_PER_SECOND:
        return Check("disk speed", "warning", value, "checkpoints will take long; set run.directory to a faster disk")
    return Check("disk speed", "ok", value)


def _clock(folder: Path) -> Check:
    """This machine's clock against the file server's, which stamps what others read."""
    place = _nearest(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".megatrain-doctor-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            skew = time.time() - Path(file.name).stat().st_mtime
    except OSError as error:
        return Check("clock", "warning", f"{place}: {error.strerror}", "set run.directory to a folder of yours")
    value = f"{skew:+.1f} s against the file system of {place}"
    if abs(skew) > _SKEW_SECONDS:
        return Check("clock", "warning", value, "set the time (chrony, ntp): munge refuses what is 5 minutes off")
    return Check("clock", "ok", value)


def _partitions() -> Check:
    """Where a job could be submitted to."""
    said = _output(["sinfo", "--noheader", "--format=%R %a %D"]) if shutil.which("sinfo") else None
    if not said:
        return Check("partitions", "ok", "none: no Slurm answers here")
    rows = [line.split() for line in said.splitlines()]
    up = [f"{name} ({nodes} nodes)" for name, state, nodes in rows if state == "up"]
    if not up:
        return Check("partitions", "warning", "none is up", "see: sinfo")
    return Check("partitions", "ok", ", ".join(up))


def _nearest(folder: Path) -> Path:
    """The folder itself, or the one above it that exists."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _output(command: list[str]) -> str | None:
    """What a program says; None where it fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CLIENT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _slurm() -> Check:
    missing = [name for name in SLURM_COMMANDS if shutil.which(name) is None]
    if len(missing) == len(SLURM_COMMANDS):
        return Check("slurm", "ok", "not here: `megatrain train` runs on this machine, `submit` needs a login node")
    if missing:
        return Check("slurm", "error", f"{', '.join(missing)} not found", "install Slurm's commands")
    try:
        ping = subprocess.run(
            ["scontrol", "ping"], capture_output=True, text=True, timeout=_CLIENT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Check("slurm", "warning", "the controller does not answer", _NO_CLUSTER)
    answer = (ping.stdout or ping.stderr).strip().splitlines()
    up = ping.returncode == 0 and any(" UP" in line for line in answer)
    return Check("slurm", "ok" if up else "warning", answer[0] if answer else "no answer", "" if up else _NO_CLUSTER)
