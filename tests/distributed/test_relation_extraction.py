"""Relations: the same losses and metrics under every layout, and in transformers, at the marker of the head."""

import json
import random
from pathlib import Path

import pytest
import torch

from megatrain.huggingface.export import export
from megatrain.run.directory import RunDir
from tests.distributed.classifiers import config_of
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import base_of, mean_f1, reported
from tests.distributed.test_problems import LAYOUTS

pytestmark = pytest.mark.distributed

TASK = (
    "task={name: relation_extraction, no_relation: none, label_smoothing: 0.1}",
    "finetune.train=[relations.jsonl]",
    "finetune.validation=[relations-held-out.jsonl]",
    "finetune.sequence_length=64",
    "training.steps=4",
)
NAMES = ("validation_loss", "accuracy", "macro_f1", "micro_f1", "recall/over", "validation_examples")
DEFAULT = (("bert", "cp2"),)
CASES = [
    pytest.param(*case, marks=() if case in DEFAULT else pytest.mark.full, id="-".join(case))
    for case in ((family, layout) for family in ("llama", "bert") for layout in LAYOUTS)
]


def write_relations(file: Path, count: int, *, seed: int) -> None:
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        relation, word = chance.choice([("none", "and"), ("over", "great"), ("under", "fatal")])
        words = chance.choices(["the", "of", "to", "in"], k=chance.randint(1, 4))
        at = len(words)
        rows.append({"tokens": [*words, "lake", word, "fine"], "head": [at, at + 1], "tail": [at + 2, at + 3],
                     "relation": relation})  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def here(here: Path) -> Path:
    if not (here / "relations.jsonl").exists():
        write_relations(here / "relations.jsonl", 60, seed=1)
        write_relations(here / "relations-held-out.jsonl", 31, seed=2)
    return here


def run_of(ranks: RankPool, here: Path, family: str, layout: str = "") -> RunDir:
    run = RunDir(here / "runs" / f"relations-{family}{layout}")
    if not run.steps():
        run = start(ranks, config_of(run.path.name, base_of(here, family)), *TASK, *LAYOUTS.get(layout, ()))
    return run


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_losses_and_metrics_of_one_process(ranks: RankPool, here: Path, family, layout) -> None:
    plain, found = (reported(run_of(ranks, here, family, one)) for one in ("", layout))
    assert plain.keys() == found.keys() == set(range(5))
    for step, values in plain.items():
        for name, limit in (("loss", 2e-6), ("grad_norm", 2e-5)) if step else ():
            assert found[step][name] == pytest.approx(values[name], rel=limit), (step, name)
        for name in NAMES if step % 2 == 0 else ():
            assert found[step][name] == pytest.approx(values[name], rel=2e-6), (step, name)
    assert found[4]["validation_examples"] == 31


def test_transformers_says_of_the_marked_texts_what_the_run_did(ranks: RankPool, here: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    run = run_of(ranks, here, "bert")
    folder = export(run.path, tmp_path / "out", dtype="float32").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    logits, labels = [], []
    for line in (here / "relations-held-out.jsonl").read_text().splitlines():
        row = json.loads(line)
        *before, head, word, tail = row["tokens"]
        text = f"{' '.join(before)} [E1] {head} [/E1] {word} [E2] {tail} [/E2]"
        encoded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
        ends = [end for _, end in encoded.pop("offset_mapping")[0].tolist()]
        place = next(number for number, end in enumerate(ends) if end > text.index("[E1]"))
        with torch.no_grad():
            logits.append(model(**encoded).logits[0, place])
        labels.append(model.config.label2id[row["relation"]])
    said, last = torch.stack(logits).argmax(-1), reported(run)[4]
    loss = torch.nn.functional.cross_entropy(torch.stack(logits), torch.tensor(labels))
    assert last["validation_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert last["macro_f1"] == pytest.approx(mean_f1(labels, said.tolist()))
