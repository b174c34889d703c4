"""What it takes to plan and to describe a checkpoint of many ranks under ZeRO-3: seconds, and bytes sent to rank 0.

    python -m benchmarks.checkpoint_plan [--replicas 1000] [--layers 80] [--out benchmarks/results/checkpoint_plan.md]

The chunks are those of the real shards of a 70B model, of all ranks, one after the other in this process; only the
tensors' own bytes are not written. About 4 minutes of one core.
"""

import argparse
import datetime
import os
import pickle
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from torch.distributed.checkpoint import SavePlan

from megatrain.checkpoint import metadata as reading
from megatrain.checkpoint.metadata import METADATA
from megatrain.checkpoint.planner import TensorPlanner
from megatrain.checkpoint.storage import HashingWriter, SafeReader
from megatrain.huggingface.names import shapes
from tests.checkpoint.many_ranks import Ranks, files_of, fragments, model, pickled_bytes


def measure(sizes: dict[str, tuple[int, ...]], ranks: int, folder: Path) -> Iterator[tuple[str, str]]:
    world = Ranks(sizes, ranks)
    local, written = (list(column) for column in zip(*map(world.save, range(ranks)), strict=True))
    yield "chunks", f"{sum(world.chunks):,}"
    yield "a rank's own plan", f"{world.seconds / ranks:.2f} s"
    yield "first save: sent to rank 0 of the plans", f"{pickled_bytes(local) / 1e6:.1f} MB"
    began = time.perf_counter()
    _, metadata = world.planners[0].create_global_plan(local)
    yield "first save: rank 0's plan, with the check that chunks cover", f"{time.perf_counter() - began:.1f} s"
    again = [world.save(rank)[0] for rank in range(0, ranks, max(1, ranks // 10))]
    assert all(plan == SavePlan([]) for plan in again), "nothing is sent for a plan that did not change"
    began = time.perf_counter()
    _, metadata = world.planners[0].create_global_plan([SavePlan([])] * ranks)
    yield "second save: sent to rank 0 of the plans", f"{pickled_bytes([SavePlan([])] * ranks) / 1e6:.1f} MB"
    yield "second save: rank 0's plan", f"{time.perf_counter() - began:.1f} s"
    yield "each save: sent to rank 0 of what was written", f"{pickled_bytes(written) / 1e6:.1f} MB"
    yield "each save: rank 0 writes `.metadata`", _seconds(lambda: HashingWriter(folder).finish(metadata, written))
    yield "size of `.metadata`", f"{(folder / METADATA).stat().st_size / 1e6:,.0f} MB"
    own = fragments(sizes, ranks // 2, ranks)
    with mock.patch.object(reading, "_data_files", return_value=files_of(written)):
        began = time.perf_counter()
        reader = SafeReader(folder)
        yield "load: a rank reads and checks `.metadata`", f"{time.perf_counter() - began:.1f} s"
    planner = TensorPlanner()

    def plan_load() -> None:
        reader.expect(own)
        planner.set_up_planner(dict(own), reader.read_metadata(), False)
        planner.create_local_plan()

    yield "load: a rank's plan", _seconds(plan_load)
    yield "load: torch's own unpickling of `.metadata`", _seconds(lambda: _unpickle(folder / METADATA))


def _unpickle(path: Path) -> None:
    with open(path, "rb") as file:
        pickle.load(file)


def _seconds(action: Callable[[], Any]) -> str:
    began = time.perf_counter()
    action()
    return f"{time.perf_counter() - began:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"# A checkpoint of {arguments.layers} layers of 70B by {arguments.replicas:,} ranks under ZeRO-3",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, one core of {os.cpu_count()}, {platform.machine()}, "
        f"Python {platform.python_version()}, torch {version('torch')}. "
        "Written by `python -m benchmarks.checkpoint_plan`.",
        "",
        "| what | measured |",
        "|---|--:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for what, value in measure(shapes(model(arguments.layers)), arguments.replicas, Path(folder)):
            lines.append(f"| {what} | {value} |")
            print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
