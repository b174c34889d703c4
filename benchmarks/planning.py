"""How far the planner's predictions are from what is: memory from real ranks on this machine, time from published runs.

    python -m benchmarks.planning [--out benchmarks/results/planning.md]

Needs the development environment. About 4 minutes on 2 cores.
"""

import argparse
import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from benchmarks.published import ROWS, Published
from launcher.planning.hardware import load_hardware
from launcher.planning.memory import MemoryEstimate, estimate_memory
from tests.distributed.memory import CASES, Case, Measured, measure
from tests.distributed.ranks import RankPool

MIB = 2**20
Pair = tuple[Case, MemoryEstimate, Measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/planning.md"))
    out = parser.parse_args().out
    text = "\n".join([*_heading(), *_memory(measured_pairs()), "", *_time(ROWS)]) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(text)


def measured_pairs() -> list[Pair]:
    hardware = load_hardware("cpu", 1)
    pool = RankPool()
    pairs = []
    try:
        for case in CASES:
            predicted = estimate_memory(
                case.model,
                case.layout,
                sequence_length=case.sequence_length,
                precision=case.precision,
                hardware=hardware,
            )
            pairs.append((case, predicted, pool.run(case.layout.world_size, measure, case)[0]))
    finally:
        pool.close()
    return pairs


def _heading() -> list[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed"))
    where = f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, {packages}"
    return [
        "# Predictions against what is",
        f"{datetime.date.today()}, {where}. Written by `python -m benchmarks.planning`; docs/planning.md explains it.",
        "",
    ]


def _memory(pairs: Sequence[Pair]) -> list[str]:
    errors = sorted(abs(_error(pair)) for pair in pairs)
    within = sum(error <= 0.05 for error in errors) / len(errors)
    held = sum(predicted.total - predicted.process >= found.peak for _, predicted, found in pairs)
    lines = [
        f"## Memory: {len(pairs)} pairs of model and layout",
        "Live tensor bytes of rank 0 at the peak of its second step, MiB, against the prediction without the process's "
        "own memory and without the margin.",
        "",
        f"- within 5%: {within:.0%} of the pairs; "
        f"median error {errors[len(errors) // 2]:.1%}, largest {errors[-1]:.1%}",
        f"- with the margin, the prediction holds what was allocated in {held} of {len(pairs)}",
        "",
        "| model, layout | predicted | measured | error | parameters | gradients, optimizer between steps | "
        "kept by a forward pass |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for pair in pairs:
        case, predicted, found = pair
        lines.append(
            f"| {case} | {predicted.tensors / MIB:.1f} ({predicted.peak}) | {found.peak / MIB:.1f} ({found.moment}) | "
            f"{_error(pair):+.1%} | {predicted.parameters / MIB:.1f} / {found.parameters / MIB:.1f} | "
            f"{found.gradients / MIB:.1f}, {found.optimizer / MIB:.1f} | {found.saved / MIB:.1f} |"
        )
    return lines


def _error(pair: Pair) -> float:
    _, predicted, found = pair
    return predicted.tensors / found.peak - 1


def _time(rows: Sequence[Published]) -> list[str]:
    lines = ["## Time: published runs", *_summary("used to choose the constants", rows, fitted=True)]
    lines += [*_summary("not used for it", rows, fitted=False), ""]
    lines += [
        "| run | source | published tokens/s a GPU | predicted | error of the step time |",
        "|---|---|--:|--:|--:|",
    ]
    for row in rows:
        mark = "" if row.fitted else " *"
        lines.append(
            f"| {row.name}{mark} | {row.source} | {row.tokens_per_second_per_gpu:,.0f} | {row.predicted:,.0f} | "
            f"{row.error:+.1%} |"
        )
    return [*lines, "", "`*` not used to choose the constants."]


def _summary(what: str, rows: Sequence[Published], *, fitted: bool) -> list[str]:
    errors = sorted(abs(row.error) for row in rows if row.fitted == fitted)
    return [f"- {len(errors)} rows {what}: median error {errors[len(errors) // 2]:.1%}, largest {errors[-1]:.1%}"]


if __name__ == "__main__":
    main()
