"""From text to tokens on disk: `megatrain data prepare` against `datasets.map` with the same tokenizer.

    python -m benchmarks.data_prepare [--rounds 5] [--megabytes 12] [--work FOLDER]

Both read the same jsonl file (the standard library's sources and the reference manual of this Python), tokenise every
document with the same byte-level BPE of 8,192 tokens, and leave the tokens on disk; both may use every core. The
contestants take turns, each in a fresh process and an empty folder, so that no cache helps and a noisy neighbour hits
all of them; a process times its own work, without imports. What counts is the median of the rounds and the ratio of
medians. Every round compares the tokens that gigatoken gave with those of `tokenizers`, byte for byte.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from megatrain.data.preparation.prepare import PrepareOptions, prepare
from megatrain.data.text.tokenizer import train_tokenizer

VOCABULARY = 8192
CORES = len(os.sched_getaffinity(0))


def with_datasets_map(text: Path, tokenizer: Path, out: Path, processes: int | None) -> None:
    """As its documentation shows it: `map(batched=True)` over a jsonl file."""
    import datasets
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(tokenizer)

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": fast(batch["text"], return_attention_mask=False)["input_ids"]}

    rows = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=str(out))
    rows.map(tokenise, batched=True, remove_columns=rows.column_names, num_proc=processes)


def with_prepare(text: Path, tokenizer: Path, out: Path, *, workers: int, gigatoken: bool = False) -> None:
    prepare(PrepareOptions(inputs=(str(text),), out=out, tokenizer=tokenizer, workers=workers, gigatoken=gigatoken))


CONTESTANTS: dict[str, Callable[[Path, Path, Path], None]] = {
    "datasets.map": lambda text, tokenizer, out: with_datasets_map(text, tokenizer, out, None),
    f"datasets.map, {CORES} processes": lambda text, tokenizer, out: with_datasets_map(text, tokenizer, out, CORES),
    "prepare, 1 process": lambda text, tokenizer, out: with_prepare(text, tokenizer, out, workers=1),
    f"prepare, {CORES} processes": lambda text, tokenizer, out: with_prepare(text, tokenizer, out, workers=CORES),
    "prepare --gigatoken": lambda text, tokenizer, out: with_prepare(text, tokenizer, out, workers=1, gigatoken=True),
}


def make_text(file: Path, megabytes: int) -> None:
    from quickstart import corpus

    corpus.build(file.parent / "text")
    written = 0
    with open(file, "w", encoding="utf-8") as out:
        for name in ("docs.jsonl", "code.jsonl"):
            for line in (file.parent / "text" / name).read_text(encoding="utf-8").splitlines(keepends=True):
                if written >= megabytes * 1_000_000:
                    return
                written += out.write(line)


def measure(name: str, folder: Path) -> list[float]:
    """Seconds by the clock and of the cores that a contestant took, in a process of its own."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.data_prepare", "--one", name, "--work", str(folder)]
    environment = os.environ | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_one(name: str, folder: Path) -> None:
    paths = folder / "text.jsonl", folder / "tokenizer", folder / "out"
    if name.startswith("datasets"):
        import datasets  # noqa: F401
        import transformers  # noqa: F401
    elif "gigatoken" in name:
        import awkward  # noqa: F401 - gigatoken imports it late
        import gigatoken  # noqa: F401
    began, before = time.perf_counter(), cpu_seconds()
    CONTESTANTS[name](*paths)
    print(json.dumps([time.perf_counter() - began, cpu_seconds() - before]))


def cpu_seconds() -> float:
    """Of this process, its threads, and the processes that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def tokens_of(folder: Path) -> bytes:
    return b"".join(shard.read_bytes() for shard in sorted(folder.glob("shard-*.tar")))


def main() -> None:
    parser = argparse.ArgumentParser(description="prepare against datasets.map")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=12, help="of text, at most")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one, options.work)
        return
    folder = Path(options.work or tempfile.mkdtemp(prefix="megatrain-prepare-"))
    make_text(folder / "text.jsonl", options.megabytes)
    train_tokenizer([str(folder / "text.jsonl")], folder / "tokenizer", VOCABULARY)
    names = [name for name in CONTESTANTS if "gigatoken" not in name or find_spec("gigatoken")]
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    reference = b""
    for _ in range(options.rounds):
        for name in names:
            seconds[name].append(measure(name, folder))
            if name.startswith("prepare"):
                found = tokens_of(folder / "out")
                reference = reference or found
                assert found == reference, f"{name}: other tokens"
    report(folder / "text.jsonl", seconds)


def report(text: Path, seconds: dict[str, list[list[float]]]) -> None:
    """A table. A ratio is the median over the rounds of the faster datasets.map's seconds over the contestant's."""
    size = text.stat().st_size / 1e6
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(": ")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    libraries = ("tokenizers", "datasets", "transformers", "gigatoken")
    machine = f"{CORES} cores of {processor}, Python {platform.python_version()}, load {os.getloadavg()[0]:.0f}"
    print(f"{date.today()}, {machine}")
    print(", ".join(f"{name} {version(name)}" for name in libraries if find_spec(name)))
    print(f"{size:.1f} MB of jsonl; medians of {len(next(iter(seconds.values())))} rounds\n")
    print("| contestant | seconds | fastest, slowest | of the cores | × datasets.map | by core seconds |")
    print("|---|---|---|---|---|---|")
    peers = [times for name, times in seconds.items() if name.startswith("datasets")]
    best = [[min(times[kind] for times in rounds) for kind in (0, 1)] for rounds in zip(*peers, strict=True)]
    for name, times in seconds.items():
        clock, cores = ([time[kind] for time in times] for kind in (0, 1))
        ratios = [
            statistics.median(peer[kind] / time[kind] for peer, time in zip(best, times, strict=True))
            for kind in (0, 1)
        ]
        print(
            f"| {name} | {statistics.median(clock):.2f} | {min(clock):.2f}, {max(clock):.2f} "
            f"| {statistics.median(cores):.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
