"""What this machine must give to ranks that start on it: the GPUs that the profile speaks of, descriptors, memory."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Literal

from launcher.installation import python_path
from launcher.planning.hardware import GIB, Hardware
from launcher.preflight.finding import Finding

DESCRIPTORS_PER_RANK = 4  # of rank 0: gloo's full mesh, the store's clients, and as many for data
_OWN_DESCRIPTORS = 40  # of any rank: libraries, pipes, logs
_LEAST_ADDRESSES = 2 * GIB  # importing torch alone maps more than one
_TIMEOUT_SECONDS = 120.0
_ASK_TORCH = """
import json, torch
from megatrain.hardware.device import why_no_cuda
why = why_no_cuda()
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if why is None else []
nccl = ".".join(map(str, torch.cuda.nccl.version())) if gpus else None
print(json.dumps({"cuda": torch.version.cuda, "hip": torch.version.hip, "nccl": nccl, "gpus": gpus, "why": why}))
"""


def ask_torch() -> dict[str, Any] | None:
    """What torch says of this machine's GPUs, from a process of its own: cuda, hip, nccl, gpus, and why there are none.

    None where torch cannot be imported.
    """
    command = [sys.executable, "-P", "-c", _ASK_TORCH]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False, env=environment
        )
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None
    return found


def check_machine(hardware: Hardware, *, ranks: int, here: int, starting: bool) -> Iterator[Finding]:
    """Whether `here` of `ranks` ranks can work on this machine.

    Args:
        starting: they start now; else a problem is a warning, for they may start elsewhere.
    """
    level: Literal["error", "warning"] = "error" if starting else "warning"
    if hardware.device != "cpu" and (why := _no_gpus(hardware, here)):
        yield Finding(level, why)
    yield from check_limits(ranks, level)


def check_limits(ranks: int, level: Literal["error", "warning"]) -> Iterator[Finding]:
    """The process limits that a rank inherits; each raises its soft limit of open files to the hard one by itself."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = _OWN_DESCRIPTORS + DESCRIPTORS_PER_RANK * ranks
    if files != resource.RLIM_INFINITY and files < needed:
        text = f"open files: {files} are allowed (ulimit -Hn), and {ranks} ranks need {needed}. Have the limit raised."
        yield Finding(level, text)
    addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
    if addresses != resource.RLIM_INFINITY and addresses < _LEAST_ADDRESSES:
        text = f"memory: a process may map {addresses / GIB:.1f} GiB (ulimit -v), too little for torch. Raise it."
        yield Finding(level, text)


def _no_gpus(hardware: Hardware, here: int) -> str | None:
    found = ask_torch()
    field = f"cluster.hardware: {hardware.name}"
    fix = "Install a CUDA build of torch that the driver can run, make GPUs visible, or set cluster.hardware=cpu."
    if found is None:
        return f"{field}: torch cannot be imported here. `megatrain doctor` says more."
    if found["why"]:
        return f"{field}: {found['why']}. {fix}"
    if len(found["gpus"]) < here:
        return f"{field}: {here} ranks, and torch sees {len(found['gpus'])} GPUs here. Start fewer with --nproc."
    return None
