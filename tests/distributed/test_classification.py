"""Classifiers are the same under every layout, resumed or not, and learn what transformers' do."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatrain.checkpoint.read import read_tensors
from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.loading.batch import Batch
from megatrain.huggingface.export import export
from megatrain.huggingface.names import wholes
from megatrain.model.architecture import row_of
from megatrain.model.initialization import initial_weight
from megatrain.run.directory import RunDir
from megatrain.run.inputs import load_run
from megatrain.tasks.base import DataShare
from megatrain.tasks.sequence_classification.task import SequenceClassification
from tests.distributed.classifiers import LABELS, config_of, make_base, write_reviews
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.project import metrics

pytestmark = pytest.mark.distributed

LAYOUTS = {
    "zero3-dp2": ("cluster.gpus_per_node=2", "parallel.zero_stage=3"),
    "tp2": ("cluster.gpus_per_node=2", "parallel.tensor_parallel=2", "parallel.sequence_parallel=false"),
    "tp2-sp": ("cluster.gpus_per_node=2", "parallel.tensor_parallel=2", "parallel.sequence_parallel=true"),
    "cp2": ("cluster.gpus_per_node=2", "parallel.context_parallel=2", "parallel.zero_stage=1"),
}
FAMILIES = ("llama", "bert")


@pytest.fixture
def here(here: Path) -> Path:
    if not (here / "reviews.jsonl").exists():
        write_reviews(here / "reviews.jsonl", 300, seed=1)
        write_reviews(here / "held-out.jsonl", 61, seed=2)
    return here


def base_of(here: Path, family: str) -> str:
    folder = here / f"base-{family}"
    return str(folder if folder.exists() else make_base(folder, family, here / "tokenizer"))


def reported(run: RunDir) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for line in metrics(run):
        found.setdefault(line["step"], {}).update(line)
    return found


@pytest.fixture
def plain(ranks: RankPool, here: Path, request) -> dict[int, dict[str, float]]:
    return plainly(ranks, here, request.param)


@pytest.fixture
def plain_llama(ranks: RankPool, here: Path) -> dict[int, dict[str, float]]:
    return plainly(ranks, here, "llama")


def plainly(ranks: RankPool, here: Path, family: str) -> dict[int, dict[str, float]]:
    """Of a run by one process, which several tests look at."""
    run = RunDir(here / "runs" / f"plain-{family}")
    if not run.steps():
        run = start(ranks, config_of(f"plain-{family}", base_of(here, family)))
    return reported(run)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("family", "plain"), [(family, family) for family in FAMILIES], indirect=["plain"])
def test_losses_and_metrics_of_one_process(ranks: RankPool, here: Path, family, plain, layout) -> None:
    run = start(ranks, config_of(f"{layout}-{family}", base_of(here, family)), *LAYOUTS[layout])
    found = reported(run)
    assert plain.keys() == found.keys() == set(range(7))
    for step, values in plain.items():
        names = ["loss", "cross_entropy", "grad_norm"] if step else []
        names += ["validation_loss", "accuracy", "macro_f1"] if step % 2 == 0 else []
        for name in names:
            assert found[step][name] == pytest.approx(values[name], rel=1e-5, abs=1e-6), (step, name)
    assert found[6]["validation_examples"] == 61


def theirs_trained(base: str, config: ResolvedFinetune) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step of a classifier of transformers, trained by torch alone, an example at a time
    and without padding. What the base lacks is what megatrain draws."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS), dtype=torch.float32)
    model.train()
    parameters, names = dict(model.named_parameters()), wholes(config.model)
    with torch.no_grad():
        for whole in names.values():
            (name, theirs) = (row := whole.rows[0]).name, row.theirs
            if name.startswith(("head.", "pooler.")):
                parameters[theirs.name].copy_(initial_weight(row, config.run.seed)[: theirs.rows])
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    section = config.optimizer
    groups = [{"params": decay, "weight_decay": section.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=section.learning_rate, betas=section.betas, eps=section.eps)
    loader = SequenceClassification(config).loader(DataShare(rank=0, size=1))
    measured = []
    for _ in range(config.training.steps):
        batches = loader.next()
        loss = torch.zeros(())
        for batch in batches.micro_batches:
            for ids, labels in examples_of(batch):
                logits = model(input_ids=ids[None]).logits
                (label,) = labels[labels != -100]
                smoothing = config.task.label_smoothing
                loss = loss + torch.nn.functional.cross_entropy(logits, label[None], label_smoothing=smoothing)
        (loss / batches.targets).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), section.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        measured.append((loss.item() / batches.targets, norm.item()))
    return measured


def examples_of(batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels of each example of a batch; what has no label is padding."""
    assert batch.cu_seqlens is not None
    bounds = batch.cu_seqlens.tolist()
    for begin, end in itertools.pairwise(bounds):
        ids, labels = batch.input_ids.flatten()[begin:end], batch.labels.flatten()[begin:end]
        if (labels != -100).any():
            yield ids, labels


@pytest.mark.parametrize(("family", "plain"), [(family, family) for family in FAMILIES], indirect=["plain"])
def test_it_learns_what_a_classifier_of_transformers_does(here: Path, family, plain) -> None:
    config = load_run(RunDir(here / "runs" / f"plain-{family}"))
    assert isinstance(config, ResolvedFinetune)
    for step, (loss, norm) in enumerate(theirs_trained(base_of(here, family), config), start=1):
        assert plain[step]["loss"] == pytest.approx(loss, rel=1e-5)
        assert plain[step]["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(("family", "plain"), [(family, family) for family in FAMILIES], indirect=["plain"])
def test_what_is_exported_says_of_texts_what_the_run_did(here: Path, tmp_path: Path, family, plain) -> None:
    """From the texts on, through transformers' tokenizer, several at a time with padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = export(here / "runs" / f"plain-{family}", tmp_path / "out", dtype="float32").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert [model.config.id2label[number] for number in range(3)] == list(LABELS)
    rows = [json.loads(line) for line in (here / "held-out.jsonl").read_text().splitlines()]
    labels = torch.tensor([model.config.label2id[row["label"]] for row in rows])
    with torch.no_grad():
        logits = model(**tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)).logits
    said, last = logits.argmax(-1), plain[6]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert last["validation_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert last["accuracy"] == pytest.approx((said == labels).float().mean().item())
    assert last["macro_f1"] == pytest.approx(mean_f1(labels.tolist(), said.tolist()))


def mean_f1(labels: list[int], said: list[int]) -> float:
    """By its definition, a label after the other."""
    scores = []
    for label in {*labels, *said}:
        pairs = [(one == label, other == label) for one, other in zip(labels, said, strict=True)]
        hits, wrong = pairs.count((True, True)), pairs.count((True, False)) + pairs.count((False, True))
        scores.append(2 * hits / (2 * hits + wrong))
    return sum(scores) / len(scores)


def test_a_resumed_run_is_the_same_to_the_bit(ranks: RankPool, here: Path, plain_llama) -> None:
    """Weights, optimizer state and losses of one that ended at step 3 and went on."""
    text = config_of("resumed-llama", base_of(here, "llama"))
    start(ranks, text, "training.steps=3")
    found = reported(start(ranks, text))
    assert [found[step]["loss"] for step in range(1, 7)] == [plain_llama[step]["loss"] for step in range(1, 7)]
    first, second = (read_tensors(RunDir(here / "runs" / name).step(6)) for name in ("plain-llama", "resumed-llama"))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


PRETRAIN = """
run: {name: classifier-base}
model: {num_hidden_layers: 2, hidden_size: 24, num_attention_heads: 2, intermediate_size: 32, tie_word_embeddings: true}
tokenizer: {path: tokenizer}
data: {sequence_length: 48, train: [{path: a}]}
training: {steps: 1, global_batch_size: 2, precision: fp32}
parallel: {compile: false}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 1}
"""


def test_a_run_gives_all_weights_but_the_heads_which_is_drawn(ranks: RankPool, here: Path) -> None:
    base = start(ranks, PRETRAIN)
    still = ("training.steps=1", "optimizer.learning_rate=1e-30")
    run = start(ranks, config_of("of-a-run", str(base)), *still, "cluster.gpus_per_node=2", "parallel.zero_stage=2")
    before, after = read_tensors(base.step(1), kind="weight"), read_tensors(run.step(1), kind="weight")
    assert after.keys() - before.keys() == {"head.weight"}
    assert before.keys() < after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    config = load_run(run)
    assert torch.equal(after["head.weight"], initial_weight(row_of(config.model, "head.weight"), config.run.seed))


PAIRS = (
    "task={name: sequence_classification, text_pair_field: more}",
    "finetune.train=[pairs-labelled.jsonl]",
    "finetune.validation=[]",
    "training.steps=3",
)


def test_token_types_are_shared_out_with_the_sequence(ranks: RankPool, here: Path) -> None:
    """Of pairs, to a BERT: under context parallelism, and under sequence parallelism."""
    write_reviews(here / "pairs-labelled.jsonl", 300, seed=1, pairs=True)
    base = base_of(here, "bert")
    plain = reported(start(ranks, config_of("pairs", base), *PAIRS))
    for layout in ("cp2", "tp2-sp"):
        found = reported(start(ranks, config_of(f"pairs-{layout}", base), *PAIRS, *LAYOUTS[layout]))
        for step in (1, 2, 3):
            assert found[step]["loss"] == pytest.approx(plain[step]["loss"], rel=1e-5)
