"""Generation with a key-value cache against generation without: milliseconds, and the ratio of their medians.

    python -m benchmarks.generate [--tokens 256] [--rounds 5] [--threads 2] [--out benchmarks/results/generate.md]

Greedy, one prompt of 32 tokens, in fp32 on a CPU; the two take turns, and must generate the same tokens. Without a
cache each token reads all tokens before it again.
"""

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from megatrain.generation.decode import continued, with_cache, without_cache
from megatrain.generation.sampling import Sampling
from megatrain.model.architecture import ModelSection, row_of
from megatrain.model.build import build_model
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.initialization import initial_weight, materialize

PROMPT = 32  # tokens
SHAPES = {
    "28M (512 wide, 6 layers)": {"num_hidden_layers": 6, "hidden_size": 512, "intermediate_size": 1408},
}


def model_of(fields: dict[str, int]) -> tuple[ModelSection, nn.Module]:
    heads = fields["hidden_size"] // 64
    section = LlamaSection.model_validate({"num_attention_heads": heads, "vocab_size": 8192, **fields})
    with torch.device("meta"):
        model = build_model(section)
    materialize(model, lambda name, _: initial_weight(row_of(section, name), 0))
    return section, model.eval()


def compare(model: nn.Module, vocab_size: int, tokens: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each round with a cache, and without."""
    prompt = torch.randint(0, vocab_size, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()

    def generate(*, cached: bool, count: int = tokens) -> list[list[int]]:
        options = {"max_new_tokens": count, "ends": lambda made: False, "vocab_size": vocab_size}
        if not cached:
            return continued(without_cache(model), [prompt], Sampling(), **options)
        with with_cache(model, places=PROMPT + count) as next_logits:
            return continued(next_logits, [prompt], Sampling(), **options)

    for cached in (True, False):
        generate(cached=cached, count=8)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    texts = []
    for _ in range(rounds):
        for cached in (True, False):
            taken, text = _timed(lambda cached=cached: generate(cached=cached))  # type: ignore[misc]
            seconds[cached].append(taken)
            texts.append(text)
    assert all(text == texts[0] for text in texts), "the cache changed what is generated"
    return seconds[True], seconds[False]


def _timed(work: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    began = time.perf_counter()
    done = work()
    return time.perf_counter() - began, done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = [
        f"# Generation of {arguments.tokens} tokens behind {PROMPT}, with a key-value cache and without",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {arguments.threads} threads of {os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}, fp32, greedy. Medians of "
        f"{arguments.rounds} rounds in turns (least to most). Written by `python -m benchmarks.generate`.",
        "",
        "| model | with, s | tokens/s | without, s | times as fast | of the least times |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, fields in SHAPES.items():
        section, model = model_of(fields)
        with_it, without_it = compare(model, section.padded_vocab_size, arguments.tokens, arguments.rounds)
        fast, slow = statistics.median(with_it), statistics.median(without_it)
        lines.append(
            f"| {name} | {fast:.2f} ({min(with_it):.2f} to {max(with_it):.2f}) | {arguments.tokens / fast:.0f} "
            f"| {slow:.2f} ({min(without_it):.2f} to {max(without_it):.2f}) | {slow / fast:.1f} "
            f"| {min(without_it) / min(with_it):.1f} |"
        )
        print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
