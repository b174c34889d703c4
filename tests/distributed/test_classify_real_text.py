"""`megatrain finetune` from the command line learns to tell the comments of Python's own library from its code."""

import importlib
import inspect
import io
import json
import random
import tokenize
from collections import Counter
from pathlib import Path

import pytest

from megatrain.data.text.tokenizer import train_tokenizer
from megatrain.run.directory import RunDir
from tests.distributed.classifiers import make_base
from tests.project import megatrain, metrics

pytestmark = pytest.mark.distributed

TRAIN = ("argparse", "ast", "inspect", "mailbox", "pickle", "subprocess", "tarfile", "typing")
HELD_OUT = ("doctest", "logging", "pdb")
CONFIG = """
run: {name: lines}
finetune: {base: base, train: [train.jsonl], validation: [held-out.jsonl], sequence_length: 64, max_epochs: 100}
task: {name: sequence_classification, text_field: line.text, label_field: line.kind}
training: {steps: 80, global_batch_size: 8, precision: fp32}
optimizer: {learning_rate: 3.0e-3}
schedule: {name: linear, warmup_steps: 5}
evaluation: {interval_steps: 40}
parallel: {compile: false}
checkpoint: {interval_steps: 80}
monitor: {log_interval_steps: 20, sinks: [], health_check: false}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 1}
"""


def write_lines(file: Path, modules: tuple[str, ...], count: int) -> Counter[str]:
    """Lines of code, and comments without their #; code is three of four."""
    found: dict[str, list[str]] = {"code": [], "comment": []}
    for name in modules:
        source = inspect.getsource(importlib.import_module(name))
        lines, prose = source.splitlines(), set[int]()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            (first, _), (last, _) = token.start, token.end
            if token.type == tokenize.COMMENT:
                found["comment"].append(token.string.lstrip("# "))
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                prose |= set(range(first, last + 1))
        found["code"] += [line.strip() for number, line in enumerate(lines, start=1) if number not in prose]
    found = {kind: [text[:60] for text in texts if len(text) > 12] for kind, texts in found.items()}
    chance = random.Random(0)
    rows = [(kind, text) for kind, share in (("code", 3), ("comment", 1)) for text in
            chance.sample(sorted(set(found[kind])), count * share // 4)]  # fmt: skip
    chance.shuffle(rows)
    file.write_text("".join(json.dumps({"line": {"text": text, "kind": kind}}) + "\n" for kind, text in rows))
    return Counter(kind for kind, _ in rows)


def test_it_learns_more_than_which_label_is_the_most_frequent(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", TRAIN, 1600)
    counts = write_lines(tmp_path / "held-out.jsonl", HELD_OUT, 160)
    lines = [json.loads(line)["line"]["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    train_tokenizer([str(tmp_path / "lines.txt")], tmp_path / "tokenizer", 384)
    make_base(tmp_path / "base", "llama", tmp_path / "tokenizer")
    (tmp_path / "run.yaml").write_text(CONFIG)
    said = megatrain(tmp_path, "finetune", "run.yaml", "--nproc", "1")
    assert "gives a classifier no head; drawn from run.seed: head.weight" in said
    last = metrics(RunDir(tmp_path / "runs" / "lines"))[-1]
    assert last["validation_examples"] == counts.total() == 160
    majority = max(counts.values()) / counts.total()
    assert majority == 0.75
    assert last["accuracy"] > majority + 0.1
    assert last["macro_f1"] > 0.7
