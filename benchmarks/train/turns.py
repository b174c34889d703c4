"""Processes that take steps when told to."""

import os
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.train.shape import Shape

FLOOR = "matrix products alone"
WARM_UP = 3  # steps


class Contestant:
    def __init__(self, name: str, shape: Shape, precision: str, threads: int) -> None:
        context = get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, shape, precision, threads))
        self._process.start()
        theirs.close()
        for _ in range(WARM_UP):
            self.step()

    def step(self) -> float:
        """Milliseconds.

        Raises:
            EOFError, ConnectionError: its process has ended.
        """
        began = time.perf_counter()
        self._pipe.send(True)
        self._pipe.recv()
        return 1e3 * (time.perf_counter() - began)

    def end(self) -> float:
        """The most memory that the process had resident, in GiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        self._process.terminate()
        self._process.join()
        return kilobytes / 2**20


def serve(pipe: Connection, name: str, shape: Shape, precision: str, threads: int) -> None:
    """In a process of its own: a step for every message."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    from benchmarks.train.contestants import STEPS, TRAINERS, trainer
    from benchmarks.train.floor import floor

    if name in TRAINERS:
        trainer(shape, precision, pipe, lambda: pipe.send(True), TRAINERS[name])
        return
    step = floor(shape, precision) if name == FLOOR else STEPS[name](shape, precision)
    while pipe.recv():
        step()
        pipe.send(True)
