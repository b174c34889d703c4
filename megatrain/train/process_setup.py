"""What a rank's process asks of its node before anything else: descriptors, local caches, where NCCL writes its traces.

A variable that is set already stays as it is.
"""

import os
import resource
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from megatrain.base.errors import MegatrainError, PreflightError
from megatrain.base.files import read_json
from megatrain.hardware.device import VARIABLE as DEVICE_VARIABLE
from megatrain.run.directory import RunDir

MOST_DESCRIPTORS = 1 << 20  # where the hard limit is none
PER_RANK = 4  # descriptors of rank 0 for each rank: gloo's full mesh, the store's clients, and as many for data


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, as every process may; the limit that then holds.

    The usual soft limit of 1,024 ends a run of some 480 ranks while it starts.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def keep_files_local(run: RunDir | None) -> None:
    """Compiled kernels go to this node's own disk ($HOME is often on NFS), NCCL's traces into the run's logs."""
    if cache := _private_folder():
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    if run is not None:
        prefix = str(run.logs.absolute() / "nccl-trace-rank-")  # torch appends the rank
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", prefix)


def settle_device(run: RunDir) -> None:
    """Let DeepSpeed and `device_type` know which device the run was planned for; a CPU run sees no GPU at all."""
    with suppress(MegatrainError):
        plan = read_json(run.plan, error=PreflightError)
        planned = plan.get("device") if isinstance(plan, dict) else None
        if planned in ("cuda", "cpu"):
            os.environ[DEVICE_VARIABLE] = planned
    if os.environ.get(DEVICE_VARIABLE) == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _private_folder() -> Path | None:
    """A folder of ours below the temporary folder, which all ranks of this node share and nobody else can write.

    None where somebody else made it first: code that is loaded from there would be theirs.
    """
    folder = Path(tempfile.gettempdir()) / f"megatrain-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return folder if ours else None
