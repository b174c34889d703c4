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
from megatrain.run.outcomes import record_outcome
from megatrain.run_dir import RunDir

_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


def join(timeout_seconds: float = 600.0) -> torch.device:
    """Join the run's process group and choose this rank's device.

    Who this rank is comes from torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK), or under srun from Slurm's.

    Args:
        timeout_seconds: of a collective. Longer than the watchdog's, which says more.

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
    timeout = timedelta(seconds=timeout_seconds)
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timeout, device_id=device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        dist.init_process_group("gloo", timeout=timeout)
    return device


def rank() -> int:
    """This process's rank, before it has joined; 0 where nobody says."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


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
    run_dir = RunDir(arguments.run)
    run(lambda: work(run_dir, arguments.resume), run_dir)


def run(work: Callable[[], None], run_dir: RunDir | None = None) -> None:
    """Run one rank's work and end the process with the documented exit code.

    A failing rank leaves at once, without a collective: the others may be waiting in one, and who started them ends
    them. Only rank 0 prints a user's error: every rank finds the same. The first to end otherwise than well leaves
    RUN/outcomes/ATTEMPT.json, before the others can notice that it is gone.
    """
    # names that torch 2.13 renamed and 2.11 has: DeepSpeed and we still call them by the old ones
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed")
    try:
        work()
        if dist.is_initialized():
            dist.destroy_process_group()
        code = int(ExitCode.DONE)
    except MegatrainError as error:
        code = int(error.exit_code)
        _record(run_dir, code, _one_line(error), retryable=error.retryable)
        if code != ExitCode.STOPPED and os.environ.get("RANK", "0") == "0":
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        code = int(ExitCode.CRASH)
        _record(run_dir, code, f"{type(error).__name__}: {_one_line(error)}", retryable=True)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _record(run_dir: RunDir | None, code: int, error: str, *, retryable: bool) -> None:
    if run_dir is not None:
        record_outcome(run_dir, code, error, retryable=retryable)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
