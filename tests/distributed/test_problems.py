"""Several labels, numbers and weighted labels: the same losses and metrics under every layout, and in transformers."""

import json
import random
from pathlib import Path

import pytest
import torch

from megatrain.checkpoint.read import read_tensors
from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.loading.batch import IGNORE_INDEX
from megatrain.huggingface.export import export
from megatrain.run.directory import RunDir
from megatrain.run.inputs import load_run
from megatrain.tasks.base import DataShare
from megatrain.tasks.sequence_classification.task import SequenceClassification
from tests.distributed.classifiers import LABELS, config_of, write_reviews
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import base_of, reported

pytestmark = pytest.mark.distributed

MARKS = {"bad": "fatal", "fair": "fine", "good": "great"}
TASKS = {
    "multi": ("task={name: sequence_classification, problem: multi_label}",),
    "number": ("task={name: sequence_classification, problem: regression}",),
    "weighted": (
        "task={name: sequence_classification, class_weights: {bad: 3.0, good: 0.5}, label_smoothing: 0.1}",
        "training.micro_batch_size=2",
    ),
}
LAYOUTS = {
    "tp2-sp": ("cluster.gpus_per_node=2", "parallel.tensor_parallel=2", "parallel.sequence_parallel=true"),
    "cp2": ("cluster.gpus_per_node=2", "parallel.context_parallel=2", "parallel.zero_stage=1"),
    "zero3-dp2": ("cluster.gpus_per_node=2", "parallel.zero_stage=3"),
    "zero2-tp2": ("cluster.gpus_per_node=4", "parallel.tensor_parallel=2", "parallel.zero_stage=2"),
    "zero0-dp2": ("cluster.gpus_per_node=2", "parallel.zero_stage=0"),
}
METRICS = {
    "multi": ("accuracy", "micro_f1", "macro_f1", "precision/bad", "recall/good"),
    "number": ("mse", "mae", "pearson", "spearman"),
    "weighted": ("accuracy", "macro_f1", "f1/bad"),
}


def write_rows(file: Path, problem: str, count: int, *, seed: int) -> None:
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        words = chance.choices(["the", "of", "and", "to", "in"], k=chance.randint(2, 8))
        there = [label for label in LABELS if chance.random() < 0.4]
        for label in there:
            words.insert(chance.randint(0, len(words)), MARKS[label])
        labels: object = there if problem == "multi" else round(len(there) * 1.7 - 1.2 + chance.random() / 8, 3)
        rows.append({"text": " ".join(words), "label": labels})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def here(here: Path) -> Path:
    for name, count, seed in (("reviews", 60, 1), ("held-out", 31, 2)):
        if not (here / f"multi-{name}.jsonl").exists():
            write_rows(here / f"multi-{name}.jsonl", "multi", count, seed=seed)
            write_rows(here / f"number-{name}.jsonl", "number", count, seed=seed)
            write_reviews(here / f"weighted-{name}.jsonl", count, seed=seed)
    return here


def run_of(ranks: RankPool, here: Path, problem: str, family: str, layout: str = "", *more: str) -> RunDir:
    name = "-".join(filter(None, (problem, family, layout, *more)))
    files = (f"finetune.train=[{problem}-reviews.jsonl]", f"finetune.validation=[{problem}-held-out.jsonl]")
    run = RunDir(here / "runs" / name.replace("=", "-"))
    if not run.steps():
        text = config_of(run.path.name, base_of(here, family))
        run = start(ranks, text, "training.steps=4", *TASKS[problem], *files, *LAYOUTS.get(layout, ()), *more)
    return run


DEFAULT = (("multi", "bert", "tp2-sp"), ("number", "llama", "cp2"))
CASES = [
    pytest.param(*case, marks=() if case in DEFAULT else pytest.mark.full, id="-".join(case))
    for case in ((p, family, layout) for p in TASKS for family in ("llama", "bert") for layout in LAYOUTS)
]


@pytest.mark.parametrize(("problem", "family", "layout"), CASES)
def test_losses_and_metrics_of_one_process(ranks: RankPool, here: Path, problem, family, layout) -> None:
    plain, found = (reported(run_of(ranks, here, problem, family, one)) for one in ("", layout))
    assert plain.keys() == found.keys() == set(range(5))
    for step, values in plain.items():
        names = [("loss", 2e-6), ("grad_norm", 2e-5)] if step else []
        names += [("validation_loss", 2e-6)] + [(name, 1e-5) for name in METRICS[problem]] if step % 2 == 0 else []
        for name, limit in names:
            assert found[step][name] == pytest.approx(values[name], rel=limit, abs=1e-7), (step, name)
    assert found[4]["validation_examples"] == 31


@pytest.mark.parametrize(("problem", "family"), [("multi", "bert"), ("number", "llama")])
def test_transformers_has_the_loss_of_the_run(ranks: RankPool, here: Path, tmp_path: Path, problem, family) -> None:
    """By the problem_type of its configuration alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = run_of(ranks, here, problem, family)
    folder = export(run.path, tmp_path / "out", dtype="float32").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [json.loads(line) for line in (here / f"{problem}-held-out.jsonl").read_text().splitlines()]
    if problem == "multi":
        targets = torch.tensor([[float(label in row["label"]) for label in LABELS] for row in rows])
        assert list(model.config.id2label.values()) == list(LABELS)
    else:
        targets = torch.tensor([row["label"] for row in rows])
    with torch.no_grad():
        encoded = tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)
        loss = model(**encoded, labels=targets).loss
    assert reported(run)[4]["validation_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_weights_are_those_of_torchs_cross_entropy(ranks: RankPool, here: Path) -> None:
    """The first step of two micro-batches, by the logits of its initial weights."""
    from megatrain.model.build import build_model

    still = ("optimizer.learning_rate=1e-30",)
    run = run_of(ranks, here, "weighted", "llama", "", *still)
    config = load_run(run)
    assert isinstance(config, ResolvedFinetune)
    model = build_model(config.model)
    model.load_state_dict(read_tensors(run.step(4), kind="weight"))
    loader = SequenceClassification(config).loader(DataShare(rank=0, size=1))
    logits, labels = [], []
    for batch in loader.next().micro_batches:
        places = {"position_ids_BS": batch.position_ids, "cu_seqlens": batch.cu_seqlens}
        with torch.no_grad():
            logits.append(model(batch.input_ids, **places)[batch.labels != IGNORE_INDEX])
        labels.append(batch.labels[batch.labels != IGNORE_INDEX])
    assert len(logits) == 2
    weights = torch.tensor([3.0, 1.0, 0.5])
    loss = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(labels), weight=weights, label_smoothing=0.1)
    assert reported(run)[1]["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("problem", ["weighted", "number"])
def test_a_resumed_run_goes_on_under_another_layout(ranks: RankPool, here: Path, problem) -> None:
    """Two steps by one layout, two by another; and by the same one, to the bit."""
    plain = reported(run_of(ranks, here, problem, "llama"))
    files = (f"finetune.train=[{problem}-reviews.jsonl]", f"finetune.validation=[{problem}-held-out.jsonl]")
    for name, then, now in (("same", "", ""), ("other", "zero3-dp2", "tp2-sp")):
        text = config_of(f"resumed-{name}-{problem}", base_of(here, "llama"))
        common = (*TASKS[problem], *files)
        start(ranks, text, *common, "training.steps=2", *LAYOUTS.get(then, ()))
        found = reported(start(ranks, text, *common, "training.steps=4", *LAYOUTS.get(now, ())))
        for step in (3, 4):
            wanted = plain[step]["loss"] if name == "same" else pytest.approx(plain[step]["loss"], rel=2e-6)
            assert found[step]["loss"] == wanted, (name, step)
        for metric in METRICS[problem]:
            assert found[4][metric] == pytest.approx(plain[4][metric], rel=1e-5), (name, metric)


@pytest.mark.full
@pytest.mark.parametrize("problem", TASKS)
@pytest.mark.parametrize("how", ["training.precision=bf16", "parallel.compile=true"])
def test_bf16_and_compiled_runs(ranks: RankPool, here: Path, problem, how) -> None:
    plain = reported(run_of(ranks, here, problem, "bert"))
    found = reported(run_of(ranks, here, problem, "bert", "tp2-sp", how))
    limit = 2e-2 if how.endswith("bf16") else 2e-6
    for step in range(1, 5):
        assert found[step]["loss"] == pytest.approx(plain[step]["loss"], rel=limit), step
