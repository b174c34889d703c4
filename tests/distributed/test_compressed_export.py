"""A compressed export says what it cost, by what transformers computes with it; and a mean of checkpoints is one."""

import json
import math
from pathlib import Path

import pytest
import torch

from launcher.cli import app
from megatrain.base.errors import ConfigError
from megatrain.checkpoint.average import read_mean
from megatrain.evaluation.checkpoint import evaluate
from megatrain.huggingface.export import export
from megatrain.huggingface.soup import soup
from megatrain.run.directory import RunDir
from tests.distributed.classifiers import write_reviews
from tests.distributed.ranks import RankPool
from tests.distributed.test_classification import plainly
from tests.trained import make_trained_run

pytestmark = pytest.mark.distributed


@pytest.fixture
def classifier(ranks: RankPool, here: Path) -> RunDir:
    if not (here / "reviews.jsonl").exists():
        write_reviews(here / "reviews.jsonl", 300, seed=1)
        write_reviews(here / "held-out.jsonl", 61, seed=2)
    plainly(ranks, here, "llama")
    return RunDir(here / "runs" / "plain-llama")


def verb(*arguments: object) -> None:
    app(["export", *map(str, arguments)], standalone_mode=False)


def test_the_metrics_before_and_after(classifier: RunDir, tmp_path: Path, capsys) -> None:
    from transformers import AutoModelForSequenceClassification

    out = tmp_path / "int8"
    verb(classifier.path, out, "--quantize", "int8", "--prune", "magnitude:0.9", "--dtype", "float32")
    said, card = capsys.readouterr().out, (out / "README.md").read_text()
    record = json.loads((out / "megatrain.json").read_text())["compression"]
    assert record["zeros"] >= 0.89
    found = evaluate(classifier.path)
    assert record["before"] == pytest.approx(found.metrics)
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype="auto").eval()
    losses = []
    for example in found.examples:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.ids])).logits[0]
        losses.append(-float(logits.log_softmax(-1)[example.there[0]]))
    assert record["after"]["validation_loss"] == pytest.approx(math.fsum(losses) / len(losses), rel=1e-4)
    assert record["after"]["validation_loss"] != pytest.approx(record["before"]["validation_loss"], rel=1e-3)
    for name in found.metrics:
        assert f"| {name} |" in card
        assert f"  {name} " in said


def test_on_other_data_and_on_none(classifier: RunDir, here: Path, tmp_path: Path, capsys) -> None:
    verb(classifier.path, tmp_path / "a", "--prune", "2:4", "--measure-on", "reviews.jsonl")
    record = json.loads((tmp_path / "a/megatrain.json").read_text())["compression"]
    assert record["data"] == "reviews.jsonl"
    assert record["after"]["validation_examples"] == 300
    verb(classifier.path, tmp_path / "b", "--prune", "2:4", "--no-measure")
    assert "not measured: --no-measure" in capsys.readouterr().out
    assert "Metrics were not measured" in (tmp_path / "b/README.md").read_text()
    with pytest.raises(ConfigError, match="--measure-on: is of --quantize and --prune"):
        verb(classifier.path, tmp_path / "c", "--measure-on", "reviews.jsonl")
    with pytest.raises(ConfigError, match="--quantize: an adapter is added to the whole weights"):
        verb(classifier.path, tmp_path / "c", "--quantize", "int8", "--adapter")


def test_a_soup_is_the_mean(classifier: RunDir, tmp_path: Path, capsys) -> None:
    from safetensors.torch import load_file

    first, second = classifier.step(classifier.steps()[0]), classifier.step(classifier.steps()[-1])
    verb(second, tmp_path / "soup", "--average", first, "--dtype", "float32")
    assert f"the mean of 2 checkpoints up to {second}" in capsys.readouterr().out
    mean = read_mean([first, second], ["embedding.weight"])["embedding.weight"]
    written = load_file(tmp_path / "soup/model.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(written, mean[: len(written)], rtol=0, atol=0)
    said = json.loads((tmp_path / "soup/megatrain.json").read_text())
    assert said["averaged"] == [str(second), str(first)]
    verb(second, tmp_path / "small", "--average", first, "--prune", "2:4")
    before = json.loads((tmp_path / "small/megatrain.json").read_text())["compression"]["before"]
    assert before["validation_loss"] != pytest.approx(evaluate(second).metrics["validation_loss"], rel=1e-6)


def test_what_has_no_mean(classifier: RunDir, tmp_path: Path) -> None:
    last = classifier.step(classifier.steps()[-1])
    with pytest.raises(ConfigError, match="is averaged already"):
        soup([classifier.path, last])
    other = make_trained_run(tmp_path)
    with pytest.raises(ConfigError, match=r"has model\.\w+=.*: weights of different models have no mean"):
        export(classifier.path, tmp_path / "out", average_with=[other.path])
    assert not (tmp_path / "out").exists()
