"""Whole runs of the real trainer on the ranks of a pool, in a folder with a little of everything."""

import contextlib
import json
import os
import random
from pathlib import Path

import torch

from launcher.preflight import checks
from launcher.runs.prepare import prepare_run
from megatrain.config.file import parse_config
from megatrain.data.preparation.prepare import PrepareOptions, prepare
from megatrain.data.text.tokenizer import train_tokenizer
from megatrain.run.directory import RunDir
from tests.distributed.ranks import RankPool, free_port

BLOCK_TOKENS = 240


def make_project(folder: Path) -> Path:
    """Prepared folders a and b, their tokenizer, and pairs.jsonl to fine-tune on."""
    chance = random.Random(1)
    for name in "ab":
        texts = (" ".join(chance.choices(["the", "of", "and", "to", "in"], k=60)) for _ in range(60))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer([str(folder / "a.jsonl")], folder / "tokenizer", 300)
    for name in "ab":
        options = {"tokenizer": folder / "tokenizer", "block_tokens": BLOCK_TOKENS}
        prepare(PrepareOptions(inputs=[str(folder / f"{name}.jsonl")], out=folder / name, **options))
    pairs = ({"prompt": f"{number} and", "response": f" then {number + 1}"} for number in range(40))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def one_start(project: str, run: str, port: int) -> None:
    """What `python -m megatrain.train RUN` does on one rank in the project's folder. It joins a group of its own."""
    from megatrain.train.__main__ import train_run

    torch.distributed.destroy_process_group()
    os.environ["MASTER_PORT"] = str(port)
    with contextlib.chdir(project):
        train_run(RunDir(Path(run)), "auto")


def start(ranks: RankPool, text: str, *overrides: str) -> RunDir:
    """`megatrain train` or `finetune` in the working folder, to its end; raises what a rank raised."""
    found = checks.examine(parse_config(text, overrides=overrides))
    report = found.demand()
    run = prepare_run(found.config, report.chosen)
    ranks.run(report.chosen.world_size, one_start, str(Path.cwd()), str(run), free_port())
    return run
