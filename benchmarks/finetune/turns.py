"""Processes that pass over the dialogues when told to."""

import os
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.finetune.setting import Setting

WARM_UP = 2  # passes: the second finds everything compiled


class Contestant:
    def __init__(self, name: str, what: str, setting: Setting, threads: int) -> None:
        context = get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, what, setting, threads))
        self._process.start()
        theirs.close()
        for _ in range(WARM_UP):
            self.once()

    def once(self) -> float:
        """Seconds.

        Raises:
            EOFError, ConnectionError: its process has ended.
        """
        began = time.perf_counter()
        self._pipe.send(True)
        self._pipe.recv()
        return time.perf_counter() - began

    def end(self) -> float:
        """The most memory that the process had resident, in GiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        self._process.kill()  # megatrain takes a milder signal as a wish to save
        self._process.join()
        return kilobytes / 2**20


def serve(pipe: Connection, name: str, what: str, setting: Setting, threads: int) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    from benchmarks.finetune.contestants import MEGATRAIN, TRAINER, megatrain, trainer

    lora = what == "lora"
    if name in TRAINER:
        trainer(setting, pipe, lambda: pipe.send(True), lora=lora, **TRAINER[name])
        return
    once = megatrain(setting, lora=lora, **MEGATRAIN[name])
    while pipe.recv():
        once()
        pipe.send(True)
