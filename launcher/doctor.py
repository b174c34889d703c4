"""What this machine has for a run, and what is amiss. torch is asked in a process of its own."""

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from launcher.hardware import GIB

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "webdataset", "tensorboard", "tokenizers", "pydantic")
SLURM_CLIENTS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
_NO_CLUSTER = "`megatrain submit` will not work from here; `scontrol ping` tells when it would"
_MINIMUM_DISK = 10 * GIB
_TIMEOUT_SECONDS = 120.0
_ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
nccl = ".".join(map(str, torch.cuda.nccl.version())) if cuda else None
print(json.dumps({"cuda": torch.version.cuda, "hip": torch.version.hip, "nccl": nccl, "gpus": gpus,
                  "gloo": torch.distributed.is_gloo_available()}))
"""


class Check(NamedTuple):
    name: str
    level: Literal["ok", "warning", "error"]
    value: str
    fix: str = ""


def examine(folder: Path) -> list[Check]:
    """Every check; `folder` is where runs would be written."""
    return [_python(), *_packages(), _torch(), _machine(), _compiler(), _disk(folder), _slurm()]


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
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return Check("accelerator", "error", "torch cannot be imported", f'see: {sys.executable} -c "import torch"')
    if found["gpus"]:
        runtime = f"CUDA {found['cuda']}" if found["cuda"] else f"ROCm {found['hip']}"
        return Check("accelerator", "ok", f"{len(found['gpus'])} × {found['gpus'][0]}, {runtime}, NCCL {found['nccl']}")
    if shutil.which("nvidia-smi"):
        return Check(
            "accelerator", "error", "torch sees no GPU, though nvidia-smi is here", "install a CUDA build of torch"
        )
    return Check("accelerator", "ok", "none: ranks run on the CPU (gloo)")


def _machine() -> Check:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Check("machine", "ok", f"{len(os.sched_getaffinity(0))} cores, {memory:.1f} GiB, {platform.platform()}")


def _compiler() -> Check:
    for name in ("gcc", "g++", "clang"):
        if path := shutil.which(name):
            return Check("compiler", "ok", path)
    return Check("compiler", "warning", "none", "torch.compile needs one: install gcc, or set parallel.compile=false")


def _disk(folder: Path) -> Check:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    value = f"{free / GIB:.0f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", "error", f"{folder} cannot be written", "set run.directory to a folder of yours")
    if free < _MINIMUM_DISK:
        return Check("disk", "warning", value, "checkpoints take 12 bytes a parameter each")
    return Check("disk", "ok", value)


def _slurm() -> Check:
    missing = [name for name in SLURM_CLIENTS if shutil.which(name) is None]
    if len(missing) == len(SLURM_CLIENTS):
        return Check("slurm", "ok", "not here: `megatrain train` runs on this machine, `submit` needs a login node")
    if missing:
        return Check("slurm", "error", f"{', '.join(missing)} not found", "install Slurm's clients")
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return Check("slurm", "warning", "the controller does not answer", _NO_CLUSTER)
    answer = (ping.stdout or ping.stderr).strip().splitlines()
    up = ping.returncode == 0 and any(" UP" in line for line in answer)
    return Check("slurm", "ok" if up else "warning", answer[0] if answer else "no answer", "" if up else _NO_CLUSTER)
