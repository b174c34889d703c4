"""One rank's process: who it is, its device and groups, and how it ends."""

import argparse
import os
import re
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from megatrain.base.errors import ConfigError, ExitCode, MegatrainError, PreflightError, RendezvousError
from megatrain.base.files import reason
from megatrain.base.terminal import accept_any_text, complain
from megatrain.hardware.device import device_type, why_no_cuda
from megatrain.run.claim import own_claim
from megatrain.run.directory import RunDir
from megatrain.run.lock import launcher_lock
from megatrain.run.outcomes import record_outcome
from megatrain.train.process_setup import keep_files_local, raise_descriptor_limit, settle_device
from megatrain.train.rendezvous import agree, explained, open_store

_NO_CUDA = (
    "Install a CUDA build of torch that the driver can run, ask for GPUs, leave the node out (slurm.extra.exclude), "
    "or set cluster.hardware to cpu."
)
_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


def join(timeout_seconds: float = 600.0) -> tuple[torch.device, dist.Store]:
    """Join the run's process group; this rank's device, and the store of all ranks, which is new at each start.

    Who this rank is comes from torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK), or under srun from Slurm's.

    Args:
        timeout_seconds: of a collective. Longer than the watchdog's, which says more.

    Raises:
        ConfigError: neither is set.
        PreflightError: the run is planned for GPUs, and a rank can use none; on every rank.
        RendezvousError: the ranks cannot meet.
    """
    rank, world_size, local_rank = _identify()
    timeout = timedelta(seconds=timeout_seconds)
    problem = None
    if device_type() == "cuda" and (why := why_no_cuda()):
        problem = f"{socket.gethostname()}: {why}. {_NO_CUDA}"
    store = open_store(rank, world_size, timeout)
    agree(store, world_size, rank=rank, problem=problem)
    begin = partial(
        dist.init_process_group,
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )
    with explained():
        if device_type() == "cpu":
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
            begin("gloo")
            return torch.device("cpu"), store
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed takes it for the device; a task may see one GPU only
        torch.cuda.set_device(device)
        begin("nccl", device_id=device)
        return device, store


def _identify() -> tuple[int, int, int]:
    """This process's rank, the number of ranks, and its number on this node."""
    for name, slurm in _SLURM.items():
        if name not in os.environ and slurm in os.environ:
            os.environ[name] = os.environ[slurm]
    needed = (*_SLURM, "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise ConfigError(
            f"environment: {', '.join(missing)} not set: start ranks with `megatrain train`, torchrun or srun"
        )
    for name in (*_SLURM, "MASTER_PORT"):
        if not re.fullmatch(r"[0-9]{1,9}", os.environ[name]):
            raise ConfigError(f"environment: {name}: {os.environ[name][:50]!r}: must be a whole number")
    rank, world_size, local_rank = (int(os.environ[name]) for name in _SLURM)
    if rank >= world_size:
        raise ConfigError(f"environment: RANK: {rank}: must be below WORLD_SIZE ({world_size})")
    return rank, world_size, local_rank


def rank() -> int:
    """This process's rank, before it has joined; 0 where nobody says."""
    given = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return int(given) if re.fullmatch(r"[0-9]{1,9}", given) else 0


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
    accept_any_text()
    raise_descriptor_limit()
    keep_files_local(run_dir)
    settle_device(run_dir)

    def work_alone() -> None:
        """Rank 0 that nobody claimed the run for, such as torchrun's, is its launcher as well."""
        unclaimed = rank() == 0 and own_claim() is None
        with launcher_lock(run_dir) if unclaimed else nullcontext():
            work(run_dir, arguments.resume)

    run(work_alone, run_dir)


def run(work: Callable[[], None], run_dir: RunDir | None = None) -> None:
    """Run one rank's work and end the process with the documented exit code.

    A failing rank leaves at once, without a collective: the others may be waiting in one, and who started them ends
    them. Only rank 0 prints a user's error: every rank finds the same. The first to end otherwise than well leaves
    RUN/outcomes/ATTEMPT.json, before the others can notice that it is gone.
    """
    # names that torch 2.13 renamed and 2.11 has: DeepSpeed and we still call them by the old ones
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed")
    try:
        with _files_of(run_dir):
            work()
        if dist.is_initialized():
            dist.destroy_process_group()
        code = int(ExitCode.DONE)
    except MegatrainError as error:
        code = int(error.exit_code)
        _record(run_dir, code, _one_line(error), retryable=error.retryable)
        if code != ExitCode.STOPPED and (rank() == 0 or isinstance(error, RendezvousError)):
            with suppress(OSError):  # a log on a full disk changes no exit code
                complain(error)
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        code = int(ExitCode.CRASH)
        _record(run_dir, code, f"{type(error).__name__}: {_one_line(error)}", retryable=True)
        with suppress(OSError):
            traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


@contextmanager
def _files_of(run_dir: RunDir | None) -> Iterator[None]:
    """Make an error of a file in the run's folder, such as a full disk, one that its reader can fix."""
    try:
        yield
    except OSError as error:
        inside = run_dir is not None and isinstance(error.filename, str) and error.filename.startswith(f"{run_dir}/")
        if not inside:
            raise
        raise PreflightError(f"{error.filename}: {reason(error)}") from None


def _record(run_dir: RunDir | None, code: int, error: str, *, retryable: bool) -> None:
    if run_dir is not None:
        record_outcome(run_dir, code, error, retryable=retryable)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
