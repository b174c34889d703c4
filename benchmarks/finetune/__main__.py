"""Fine-tuning on dialogues by megatrain and by Hugging Face's Trainer, in turns: seconds per pass, and peak memory.

    pip install --no-deps chatterbot-corpus
    python -m benchmarks.finetune [--what full lora] [--rounds 5] [--threads 2] [--contestants NAME …] [--toy]

Each contestant is a process that passes once over the same dialogues when it is told to, while the others wait; what
counts is the median over the rounds of the ratio within a round. Writes
benchmarks/results/finetune.json and the part of finetune.md that follows its marker.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.finetune.contestants import MEGATRAIN, TRAINER
from benchmarks.finetune.setting import WORK, Setting, examples_of, packed_rows, prepare, run_of
from benchmarks.finetune.turns import Contestant
from benchmarks.results_page import replace_part

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "deepspeed", "transformers", "peft")
OURS, APART = "megatrain", "megatrain, a dialogue a row"


def measure(names: list[str], what: str, setting: Setting, rounds: int, threads: int) -> list[dict[str, Any]]:
    """A row per contestant, with its seconds of each round."""
    contestants = []
    for name in names:
        print(f"{what}: {name}: warming up", flush=True)
        contestants.append(Contestant(name, what, setting, threads))
    times: dict[str, list[float]] = {one.name: [] for one in contestants}
    for number in range(rounds):
        first = number % len(contestants)
        for one in contestants[first:] + contestants[:first]:
            times[one.name].append(one.once())
        print(
            f"{what}: round {number + 1} of {rounds}", {name: round(t[-1], 2) for name, t in times.items()}, flush=True
        )
    return [{"what": what, "contestant": one.name, "seconds": times[one.name], "gib": one.end()} for one in contestants]


def table(rows: list[dict[str, Any]], tokens: int) -> list[str]:
    measured = {row["contestant"]: row["seconds"] for row in rows}
    lines = [
        "| | seconds a pass | tokens/s | time over megatrain's | over a dialogue a row's | peak memory, GiB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        median = statistics.median(row["seconds"])
        ratios = [
            f"{statistics.median(a / b for a, b in zip(row['seconds'], measured[other], strict=True)):.2f}"
            if other in measured
            else ""
            for other in (OURS, APART)
        ]
        cells = [row["contestant"], f"{median:.2f}", f"{tokens / median:,.0f}", *ratios, f"{row['gib']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def tokens_of(setting: Setting) -> tuple[int, int]:
    """Dialogues and tokens of a pass."""
    from megatrain.run.directory import RunDir
    from megatrain.run.inputs import load_run

    config: Any = load_run(RunDir(run_of("rows", setting, lora=False, compiled=False)))
    sizes = [len(ids) for ids, _ in examples_of(packed_rows(config, setting))]
    return len(sizes), sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contestants", nargs="+", choices=[*MEGATRAIN, *TRAINER], default=[*MEGATRAIN, *TRAINER])
    parser.add_argument("--note", default="", help="a sentence for the page, of what else the machine did")
    parser.add_argument("--toy", action="store_true", help="a tiny model; nothing is written")
    arguments = parser.parse_args()
    setting = Setting(2, 64, 4, 96, 128, 4, 2, 4) if arguments.toy else Setting()
    os.environ["DS_ACCELERATOR"] = "cpu"
    prepare(setting)
    count, tokens = tokens_of(setting)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    page = [
        f"{date.today()}, {arguments.threads} threads of {os.cpu_count()} cores {platform.machine()}, "
        f"Python {platform.python_version()}, {packages}. Written by "
        f"`python -m benchmarks.finetune {shlex.join(sys.argv[1:])}`. {arguments.note}".rstrip(),
        "",
        f"{count} dialogues of chatterbot-corpus, {tokens:,} tokens a pass, {tokens / count:.0f} a dialogue; a Llama "
        f"of {setting.layers} layers, {setting.width} wide, fp32, AdamW. megatrain packs them into rows of "
        f"{setting.length} tokens, {setting.packed_rows} a step; where each has a row of its own, and in Trainer, "
        f"{setting.together} are a step, padded to the longest. Medians of {arguments.rounds} rounds in turns.",
        "",
    ]
    results = []
    for what in arguments.what:
        rows = measure(arguments.contestants, what, setting, arguments.rounds, arguments.threads)
        results += rows
        title = "All weights" if what == "full" else "LoRA of rank 16, by megatrain and by peft"
        page += [f"### {title}", *table(rows, tokens), ""]
    print("\n".join(page))
    if not arguments.toy:
        (RESULTS / "finetune.json").write_text(json.dumps(results, indent=1) + "\n")
        replace_part(RESULTS / "finetune.md", "speed", "Fine-tuning on dialogues, beside Trainer", page)
    print(f"what it made lies in {WORK}")


if __name__ == "__main__":
    main()
