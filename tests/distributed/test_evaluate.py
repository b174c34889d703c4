"""`evaluate` says of a checkpoint what its loop did; `predict` says it of each row; the report holds it."""

import json
import math
from pathlib import Path

import pytest

from launcher.cli import app
from megatrain.base.errors import ConfigError, DataError
from megatrain.checkpoint.state import read_counts
from megatrain.data.loading.evaluation import EvaluationLoader
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.evaluation.checkpoint import evaluate
from megatrain.evaluation.predictions import predictions
from megatrain.evaluation.report import as_text, write_report
from megatrain.generate import generate
from megatrain.run.directory import RunDir
from tests.distributed.classifiers import config_of, write_reviews, write_tagged
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import base_of, plainly, reported
from tests.distributed.test_token_classification import TASK

pytestmark = pytest.mark.distributed

PRETRAIN = """
run: {name: to-evaluate}
model: {num_hidden_layers: 2, hidden_size: 24, num_attention_heads: 2, intermediate_size: 32}
tokenizer: {path: tokenizer}
data: {sequence_length: 48, train: [{path: a}], validation: [{path: b}]}
training: {steps: 2, global_batch_size: 4, precision: PRECISION}
optimizer: {learning_rate: 1.0e-2}
evaluation: {sequences: 10}
parallel: {compile: false}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 1}
"""


@pytest.fixture
def classifier(ranks: RankPool, here: Path) -> RunDir:
    if not (here / "reviews.jsonl").exists():
        write_reviews(here / "reviews.jsonl", 300, seed=1)
        write_reviews(here / "held-out.jsonl", 61, seed=2)
    plainly(ranks, here, "llama")
    return RunDir(here / "runs" / "plain-llama")


@pytest.fixture
def tagger(ranks: RankPool, here: Path) -> RunDir:
    write_tagged(here / "tagged.jsonl", 300, seed=1)
    write_tagged(here / "tagged-held-out.jsonl", 61, seed=2)
    run = RunDir(here / "runs" / "tokens-llama")
    return run if run.steps() else start(ranks, config_of("tokens-llama", base_of(here, "llama")), *TASK)


def assert_as_reported(run: RunDir, found: dict[str, float]) -> None:
    last = reported(run)[run.steps()[-1]]
    names = [name for name in found if name in last]
    assert "validation_loss" in names
    for name in names:
        assert found[name] == pytest.approx(last[name], rel=1e-6), name


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.full)])
def test_a_language_model(ranks: RankPool, here: Path, precision) -> None:
    text = PRETRAIN.replace("PRECISION", precision).replace("to-evaluate", f"to-evaluate-{precision}")
    run = start(ranks, text)
    found = evaluate(run.path)
    assert_as_reported(run, found.metrics)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(found.metrics["validation_loss"]))
    loader = EvaluationLoader(
        found_sources(here), 48, False, sequences=10, micro_batch_size=2, data_rank=0, data_size=1
    )
    tokenizer = Tokenizer.load(here / "tokenizer")
    targets = [int(label) for batch in loader for label in batch.labels.flatten() if label >= 0]
    size = sum(len(tokenizer.decode([token], skip_special_tokens=True).encode()) for token in targets)
    nats = found.metrics["validation_loss"] * found.metrics["validation_targets"]
    assert found.metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert evaluate(run.path, [str(here / "b")]).metrics["validation_targets"] > found.metrics["validation_targets"]
    assert evaluate(run.path, split="train").data == "a"


def found_sources(here: Path) -> list:
    from megatrain.config import Source

    return [Source(path=str(here / "b"))]


def test_a_classifier_of_texts(classifier: RunDir, here: Path, tmp_path: Path) -> None:
    found = evaluate(classifier.path)
    assert_as_reported(classifier, found.metrics)
    assert found.classes is not None
    assert found.classes.accuracy == pytest.approx(found.metrics["accuracy"])
    assert found.classes.macro_f1 == pytest.approx(found.metrics["macro_f1"])
    assert evaluate(classifier.step(6), ["held-out.jsonl"]).metrics == found.metrics
    assert "precision  recall" in as_text(found)
    write_report(found, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert all(f"<h2>{part}</h2>" in page for part in ("Confusion matrix", "Calibration", "Worst mistakes"))
    assert "<polyline" in page
    wrong = sum(1 for example in found.examples if example.said != example.there)
    assert f"{wrong} of 61 answers are wrong" in (tmp_path / "report" / "report.md").read_text()
    rows = [json.loads(line) for line in (here / "held-out.jsonl").read_text().splitlines()]
    (here / "unlabelled.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    said = list(predictions(classifier.path, here / "unlabelled.jsonl", max_new_tokens=1, batch_size=1))
    assert [row for row, _ in said] == [{"text": row["text"]} for row in rows]
    right = sum(one["label"] == row["label"] for row, (_, one) in zip(rows, said, strict=True))
    assert right / 61 == pytest.approx(found.metrics["accuracy"])
    for _, one in said:
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert max(one["probabilities"], key=one["probabilities"].get) == one["label"]


def test_rows_that_cannot_be_read_are_named_by_their_own_file(classifier: RunDir, here: Path) -> None:
    (here / "spoilt.jsonl").write_text('{"text": "a"}\n\n{"words": "b"}\n')
    with pytest.raises(DataError, match=r"spoilt\.jsonl:3: text: is not there as text"):
        list(predictions(classifier.path, here / "spoilt.jsonl", max_new_tokens=1, batch_size=1))
    with pytest.raises(ConfigError, match="is a classifier"):
        generate(classifier.path, "x")


def test_a_classifier_of_words(tagger: RunDir, here: Path) -> None:
    found = evaluate(tagger.path)
    assert_as_reported(tagger, found.metrics)
    assert found.classes is not None
    assert found.classes.examples == found.metrics["validation_words"]
    file = here / "words.jsonl"
    long = {"tokens": ["the"] * 60}  # longer than a sequence
    rows = [json.loads(line) for line in (here / "tagged-held-out.jsonl").read_text().splitlines()]
    file.write_text("".join(json.dumps({"tokens": row["tokens"]}) + "\n" for row in [*rows[:5], long, *rows[5:]]))
    warnings: list[str] = []
    said = list(predictions(tagger.path, file, max_new_tokens=1, batch_size=1, warn=warnings.append))
    assert warnings == [f"{file}: 1 of 62 examples, cut to 48 tokens, lose 12 tokens at their end"]
    (row, cut), said = said[5], [*said[:5], *said[6:]]
    assert row == long
    assert len(cut["tags"]) == 60
    assert cut["tags"][-1] is None is not cut["tags"][0]
    pairs = [
        pair for row, (_, one) in zip(rows, said, strict=True) for pair in zip(row["tags"], one["tags"], strict=True)
    ]
    assert sum(one == other for one, other in pairs) / len(pairs) == pytest.approx(found.metrics["accuracy"])


SFT = """
run: {name: sft-to-evaluate}
finetune: {base: BASE, train: [pairs.jsonl], validation: [pairs.jsonl], sequence_length: 48}
training: {steps: 2, global_batch_size: 4, precision: fp32}
parallel: {compile: false}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 1}
"""


def test_a_fine_tuned_language_model(ranks: RankPool, here: Path) -> None:
    run = start(ranks, SFT.replace("BASE", base_of(here, "llama")))
    assert_as_reported(run, evaluate(run.path).metrics)
    rows = [json.loads(line) for line in (here / "pairs.jsonl").read_text().splitlines()][:5]
    file = here / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    said = list(predictions(run.path, file, max_new_tokens=6, batch_size=2))
    for row, (given, one) in zip(rows, said, strict=True):
        assert given == {"prompt": row["prompt"]}
        whole = generate(run.path, row["prompt"], max_new_tokens=6, temperature=0)
        assert whole == row["prompt"] + one["response"]


def test_the_commands(classifier: RunDir, here: Path, capsys) -> None:
    run = str(classifier.path)
    app(["evaluate", run, "held-out.jsonl", "--json"], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    assert said["metrics"]["validation_examples"] == 61
    assert len(said["classes"]["classes"]) == 3
    app(["predict", run, "--input", "held-out.jsonl", "--output", "answered.jsonl"], standalone_mode=False)
    assert "answered.jsonl: 61 rows" in capsys.readouterr().out
    assert "label" in json.loads((here / "answered.jsonl").read_text().splitlines()[0])["prediction"]
    with pytest.raises(ConfigError, match="is there already"):
        app(["predict", run, "--input", "held-out.jsonl", "--output", "answered.jsonl"], standalone_mode=False)
    with pytest.raises(ConfigError, match="--split test: is not among the data that the run has: validation, train"):
        app(["evaluate", run, "--split", "test"], standalone_mode=False)


def test_named_sets_of_pretraining(ranks: RankPool, here: Path) -> None:
    text = PRETRAIN.replace("PRECISION", "fp32").replace("to-evaluate", "named-sets")
    sets = ("data.validation={one: [{path: a}], two: [{path: b}]}", "evaluation.at_start=true")
    stopping = "training.early_stopping={metric: two/bits_per_byte}"
    run = start(ranks, text, *sets, stopping)
    values = reported(run)
    assert values[0].keys() >= {"one/validation_loss", "two/validation_loss"}, "before the first step"
    assert read_counts(run.step(2)).early_stopping.metric == "two/bits_per_byte"
    found = evaluate(run.path)
    assert found.data == "one, two"
    assert found.metrics == pytest.approx({name: values[2][name] for name in found.metrics}, rel=1e-6)
    alone = evaluate(run.path, split="two")
    assert alone.metrics == {name: found.metrics[f"two/{name}"] for name in alone.metrics}
    assert alone.metrics["perplexity"] == pytest.approx(math.exp(alone.metrics["validation_loss"]))
    assert evaluate(run.path, [str(here / "b")]).metrics.keys() == alone.metrics.keys()
    with pytest.raises(
        ConfigError, match="--split three: is not among the data that the run has: validation, train, one"
    ):
        evaluate(run.path, split="three")
    assert "one/perplexity" in as_text(found)
