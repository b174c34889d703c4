"""One rank's process: who it is, its device and groups, and how it ends."""

import argparse
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megatrain.errors import ConfigError, ExitCode, MegatrainError
from megatrain.run_dir import RunDir

_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
_TIMEOUT = timedelta(minutes=10)


def join() -> torch.device:
    """Join the run's process group and choose this rank's device.

    Who this rank is comes from torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK), or under srun from Slurm's.

    Raises:
        ConfigError: neither is set.
    """
    for name, slurm in _SLURM.items():
        if name not in os.environ and slurm in os.environ:
            os.environ[name] = os.environ[slurm]
    if missing := [name for name in (*_SLURM, "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(
            f"environment: {', '.join(missing)} not set: start ranks with `megatrain train`, torchrun or srun"
        )
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=_TIMEOUT, device_id=device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    return device


def hosts(group: dist.ProcessGroup) -> list[str]:
    """The host of every rank, each once. Collective."""
    gathered: list[str] = [""] * dist.get_world_size(group)
    dist.all_gather_object(gathered, socket.gethostname(), group=group)
    return list(dict.fromkeys(gathered))


def main(module: str, description: str | None, work: Callable[[RunDir, str], None]) -> None:
    """The command line of one rank: `python -m MODULE RUN [--resume X]`, to `work(RUN, X)`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("run", type=Path, help="a run folder with config.yaml and ds_config.json")
    parser.add_argument("--resume", default="auto", metavar="auto|must|never|STEP")
    arguments = parser.parse_args()
    run(lambda: work(RunDir(arguments.run), arguments.resume))


def run(work: Callable[[], None]) -> None:
    """Run one rank's work and end the process with the documented exit code.

    A failing rank leaves at once, without a collective: the others may be waiting in one, and who started them ends
    them. Only rank 0 prints a user's error: every rank finds the same.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls, not ours
    try:
        work()
        if dist.is_initialized():
            dist.destroy_process_group()
        code = int(ExitCode.DONE)
    except MegatrainError as error:
        code = int(error.exit_code)
        if code != ExitCode.STOPPED and os.environ.get("RANK", "0") == "0":
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        code = int(ExitCode.CRASH)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
