"""What the sections share: timing on a device, peaks of memory, and a line of JSON per result."""

import argparse
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

ROUNDS = 5


def chosen(rungs: Iterable[str]) -> list[str]:
    """Those that the variable RUNGS names, separated by semicolons; all without it."""
    wanted = os.environ.get("RUNGS")
    return [rung for rung in rungs if wanted is None or rung in wanted.split(";")]


class Recorder:
    """Writes results, an object per line, to the file that all sections share."""

    def __init__(self, section: str) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--device", default="cuda")
        arguments = parser.parse_args()
        self.section = section
        self.device = torch.device(arguments.device)
        self.out: Path = arguments.out

    @property
    def toy(self) -> bool:
        """On a CPU: sizes that only show that the script works."""
        return self.device.type == "cpu"

    def write(self, name: str, **values: Any) -> None:
        line = json.dumps({"section": self.section, "name": name, **values})
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def attempt(self, name: str, work: Callable[[], dict[str, Any] | None]) -> None:
        """A result, if `work` has not written it itself, or why there is none: the next goes on."""
        try:
            values = work()
            if values is not None:
                self.write(name, **values)
        except Exception as error:
            self.write(name, error=f"{type(error).__name__}: {str(error)[:300]}")
            traceback.print_exc()
            torch._dynamo.reset()

    def synchronize(self) -> None:
        if not self.toy:
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], Any], repeats: int = 10) -> float:
        """The median over ROUNDS of the mean over `repeats`, after one call that compiles and allocates."""
        work()
        rounds = []
        for _ in range(1 if self.toy else ROUNDS):
            self.synchronize()
            began = time.perf_counter()
            for _ in range(1 if self.toy else repeats):
                work()
            self.synchronize()
            rounds.append((time.perf_counter() - began) / (1 if self.toy else repeats))
        return 1e3 * statistics.median(rounds)

    def peak_bytes(self, work: Callable[[], Any]) -> int | None:
        """The most that `work` allocates beyond what is there; None on a CPU."""
        if self.toy:
            return None
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        self.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def rates(self, milliseconds: float, tokens: int, flops_per_token: float) -> dict[str, float]:
        """Model FLOPs as FACTS of docs/planning.md count them: 6 per matmul parameter, causal attention by half."""
        return {
            "ms": milliseconds,
            "tokens_per_second": 1e3 * tokens / milliseconds,
            "tflops": tokens * flops_per_token / milliseconds / 1e9,
        }

    def memory(self) -> dict[str, int | None]:
        """The most that this process has allocated, and that torch has taken from the card for it."""
        if self.toy:
            return {"allocated_bytes": None, "reserved_bytes": None}
        return {
            "allocated_bytes": torch.cuda.max_memory_allocated(),
            "reserved_bytes": torch.cuda.max_memory_reserved(),
        }
