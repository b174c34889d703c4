"""Run a function on N gloo ranks. One pool of processes serves a whole session.

They are forked from a server that has imported torch and DeepSpeed, for that takes seconds; it has a single thread.
"""

import contextlib
import gc
import importlib
import multiprocessing as mp
import os
import secrets
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

_TIMEOUT_SECONDS = 270
_PRELOADED = ["torch", "deepspeed", "torch._inductor.compile_fx", "megatrain.train.__main__"]
_GRACE_SECONDS = 5  # for the others to end as well when one rank has failed


class RankPool:
    """As many processes as were asked for at once; `run` uses the first `world_size` as a fresh process group."""

    def __init__(self) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[mp.process.BaseProcess] = []

    def run(self, world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(*arguments)` on every rank; the results by rank. Raises what a rank raised, with its traceback."""
        self._start(world_size)
        port = free_port()
        pipes = self._pipes[:world_size]
        for pipe in pipes:
            pipe.send((world_size, port, function.__module__, function.__qualname__, arguments))
        outcomes: dict[Connection, tuple[bool, Any]] = {}
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while waiting := [pipe for pipe in pipes if pipe not in outcomes]:
            ready = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not ready:
                self._begin_again()  # ranks that wait for one that failed would be late for the next call
                break
            for pipe in waiting:
                if pipe in ready:
                    outcomes[pipe] = self._outcome(pipe)
                    if not outcomes[pipe][0]:
                        deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
        if not all(process.is_alive() for process in self._processes):
            self._begin_again()
        if failed := [outcomes[pipe][1] for pipe in pipes if pipe in outcomes and not outcomes[pipe][0]]:
            raise AssertionError("\n".join(failed))
        if len(outcomes) < world_size:
            silent = [rank for rank, pipe in enumerate(pipes) if pipe not in outcomes]
            raise TimeoutError(f"ranks {silent} of {world_size} gave no answer in {_TIMEOUT_SECONDS} s")
        return [outcomes[pipe][1] for pipe in pipes]

    def _outcome(self, pipe: Connection) -> tuple[bool, Any]:
        try:
            answer: tuple[bool, Any] = pipe.recv()
            return answer
        except EOFError:
            rank = self._pipes.index(pipe)
            self._processes[rank].join(_GRACE_SECONDS)
            return False, f"--- rank {rank} died with {self._processes[rank].exitcode}"

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def _start(self, size: int) -> None:
        if size <= len(self._processes):
            return
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("OMP_NUM_THREADS", "1")  # or NumPy's BLAS starts threads, which a fork loses
            patched.setenv("DS_ACCELERATOR", os.environ.get("DS_ACCELERATOR", "cpu"))
            forkserver.ensure_running()
        for rank in range(len(self._processes), size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, theirs, sys.path), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def _begin_again(self) -> None:
        self.close()
        self._pipes, self._processes = [], []


def _serve(rank: int, pipe: Connection, path: list[str]) -> None:
    sys.path[:] = path
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch

    warnings.filterwarnings("ignore", category=FutureWarning)  # DeepSpeed calls what torch 2.13 renamed
    torch.set_num_threads(1)
    gc.freeze()  # what is imported stays: a collection, of which DeepSpeed asks for many, takes 0.4 s with it
    while True:
        world_size, port, module, name, arguments = pipe.recv()
        try:
            _join(rank, world_size, port)
            outcome = (True, getattr(importlib.import_module(module), name)(*arguments))
        except BaseException:
            outcome = (False, f"--- rank {rank} of {world_size}\n{traceback.format_exc()}")
        finally:
            _leave()
        pipe.send(outcome)


def _join(rank: int, world_size: int, port: int) -> None:
    import torch.distributed as dist

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    dist.barrier()  # rank 0 may end its group at once, and with it the store that others still read


def _leave() -> None:
    """End the group, and make DeepSpeed forget it.

    It keeps its view of the world, and the counts of modules and parameters that ranks compare, in module globals.
    """
    import torch
    import torch.distributed as dist

    torch._dynamo.reset()
    _free_engines()
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.distributed_c10d._world.group_count = 0  # a group that could not be made has counted, on this rank alone
    if "deepspeed" in sys.modules:
        comm = importlib.import_module("deepspeed.comm.comm")
        comm.cdb = None
        importlib.reload(importlib.import_module("deepspeed.utils.groups"))
        offload = importlib.import_module("deepspeed.runtime.zero.parameter_offload").DeepSpeedZeRoOffload
        (count,) = offload._register_deepspeed_module.__defaults__
        count[0] = 0
        importlib.import_module("deepspeed.runtime.zero.partition_parameters").Init.param_id = 0
    gc.collect()


def _free_engines() -> None:
    """Engines that are not destroyed keep themselves by hooks of their gradients, and their groups with gloo's threads,
    which take more of a core from run to run."""
    if "deepspeed" not in sys.modules:
        return
    offload = importlib.import_module("deepspeed.runtime.zero.parameter_offload")
    coordinator = importlib.import_module("deepspeed.runtime.zero.partitioned_param_coordinator")
    engine_type = importlib.import_module("deepspeed").DeepSpeedEngine
    for engine in [thing for thing in gc.get_objects() if issubclass(type(thing), engine_type)]:
        with contextlib.suppress(Exception):  # one that failed half-way
            engine.destroy()
    offload.FWD_MODULE_STACK.clear()
    released = coordinator.PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    released.__closure__[0].cell_contents.cache_clear()


def free_port() -> int:
    """Below the ports that the system gives to outgoing connections: one of those may take it before a rank does."""
    while True:
        port = secrets.choice(range(15_000, 32_000))
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            return port
