"""Optimizer steps by megatrain and by what the field uses: one model, one batch, one optimizer, interleaved.

    pip install accelerate
    python -m benchmarks.train [--precision fp32 bf16] [--rounds 7] [--threads 2] [--contestants NAME …] [--toy]

Each contestant is a process that compiles and warms up, then takes its steps in turns with the others while they wait;
what counts is the median over the rounds of the ratio within a round. Writes benchmarks/results/train.json, then
train.md.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.train.shape import Shape
from benchmarks.train.turns import FLOOR, Contestant

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "deepspeed", "transformers", "accelerate")
OURS = "megatrain"
CONTESTANTS = (
    OURS,
    "plain loop, megatrain's model",
    "plain loop, transformers",
    "FSDP2, transformers",
    "Trainer",
    "Trainer, accelerate, DeepSpeed",
    FLOOR,
)
STEPS = 2  # of each contestant in a round


def measure(names: list[str], shape: Shape, precision: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """A row per contestant, with its milliseconds per step of each round."""
    contestants, failed = [], []
    for name in names:
        print(f"{precision}: {name}: warming up", flush=True)
        try:
            contestants.append(Contestant(name, shape, precision, threads))
        except (ConnectionError, EOFError):
            failed.append(name)
    times: dict[str, list[float]] = {one.name: [] for one in contestants}
    for number in range(rounds):
        for one in contestants[number % len(contestants) :] + contestants[: number % len(contestants)]:
            times[one.name].append(statistics.mean(one.step() for _ in range(STEPS)))
        print(f"{precision}: round {number + 1} of {rounds}", flush=True)
    rows: list[dict[str, Any]] = [
        {"precision": precision, "contestant": one.name, "ms": times[one.name], "gib": one.end()} for one in contestants
    ]
    return rows + [{"precision": precision, "contestant": name, "ms": None, "gib": None} for name in failed]


def table(rows: list[dict[str, Any]], shape: Shape) -> list[str]:
    measured = {row["contestant"]: row["ms"] for row in rows if row["ms"]}
    lines = [
        f"## {rows[0]['precision']}",
        "| | ms per step | tokens/s | time over megatrain's | over the products' | peak memory, GiB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if row["ms"] is None:
            lines.append(f"| {row['contestant']} | failed | | | | |")
            continue
        median = statistics.median(row["ms"])
        ratios = [
            f"{statistics.median(a / b for a, b in zip(row['ms'], measured[other], strict=True)):.2f}"
            if other in measured
            else ""
            for other in (OURS, FLOOR)
        ]
        rate = 1e3 * shape.tokens / median
        lines.append(f"| {row['contestant']} | {median:.0f} | {rate:,.0f} | {' | '.join(ratios)} | {row['gib']:.2f} |")
    return lines


def heading(shape: Shape, rounds: int, threads: int) -> list[str]:
    packages = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    command = " ".join(["python -m benchmarks.train", *sys.argv[1:]])
    return [
        "# Optimizer steps on a CPU",
        f"{date.today()}, {threads} threads of {os.cpu_count()} cores {platform.machine()}, "
        f"Python {platform.python_version()}, {packages}. Written by `{command}`.",
        "",
        f"{shape}: {shape.section.parameters:,} parameters, {shape.tokens:,} tokens per step, AdamW, clipping; "
        f"median of {rounds} interleaved rounds of {STEPS} steps. In bf16 megatrain keeps bf16 weights under fp32 "
        "masters, the others run autocast or FSDP2's casts. Trainer's time leaves out what it does between steps.",
        "",
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--toy", action="store_true", help="a tiny shape; nothing is written")
    arguments = parser.parse_args()
    shape = Shape(2, 64, 4, 96, 256, 64, 2) if arguments.toy else Shape()
    page = heading(shape, arguments.rounds, arguments.threads)
    results = []
    for precision in arguments.precision:
        rows = measure(arguments.contestants, shape, precision, arguments.rounds, arguments.threads)
        results += rows
        page += [*table(rows, shape), ""]
    if not arguments.toy:
        (RESULTS / "train.json").write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "train.md").write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
