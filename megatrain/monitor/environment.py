"""Where a run ran: what RUN/environment.json holds."""

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from megatrain.hardware.device import device_type
from megatrain.version import __version__

_PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "datasets",
    "webdataset",
    "tokenizers",
    "tensorboard",
    "numpy",
    "triton",
)

# An allow-list: the environment of a job also holds tokens and passwords.
_VARIABLES = (
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST", "SLURM_NNODES", "SLURM_NTASKS",
    "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "DS_ACCELERATOR", "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA",
    "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "GLOO_SOCKET_IFNAME", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
    "CUBLAS_WORKSPACE_CONFIG", "CUDA_LAUNCH_BLOCKING",
)  # fmt: skip


def environment(hosts: Sequence[str] = ()) -> dict[str, Any]:
    """Versions, code revision and machine, ready for JSON; holds no secrets.

    Args:
        hosts: of every rank, where the caller knows them; default: this machine.
    """
    return {
        "megatrain": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "git": git_revision(Path(__file__)),
        "hosts": list(hosts) or [socket.gethostname()],
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
        "cuda": torch.version.cuda,
        "command": sys.argv,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _gpus() -> list[str]:
    count = torch.cuda.device_count() if device_type() == "cuda" else 0
    return [torch.cuda.get_device_name(index) for index in range(count)]


def git_revision(file: Path) -> dict[str, Any] | None:
    """The commit that a source file belongs to, and whether tracked files differ from it.

    None where git is absent or does not track the file: an installed package may lie inside somebody else's repository.
    """
    folder = file.resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return None
    revision = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": bool(changes)} if revision else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
