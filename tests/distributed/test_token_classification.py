"""Token classifiers: the same losses and the same entities under every layout, and in transformers."""

import json
from pathlib import Path

import pytest
import torch

from megatrain.huggingface.export import export
from megatrain.run.directory import RunDir
from megatrain.tasks.token_classification.entities import entities
from tests.distributed.classifiers import config_of, write_tagged
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import base_of, reported

pytestmark = pytest.mark.distributed

TASK = (
    "task={name: token_classification, label_smoothing: 0.1}",
    "finetune.train=[tagged.jsonl]",
    "finetune.validation=[tagged-held-out.jsonl]",
)
LAYOUTS = {
    "tokens-cp2": ("cluster.gpus_per_node=2", "parallel.context_parallel=2", "parallel.zero_stage=1"),
    "tokens-tp2": ("cluster.gpus_per_node=2", "parallel.tensor_parallel=2", "parallel.sequence_parallel=true"),
    "tokens-zero3": ("cluster.gpus_per_node=2", "parallel.zero_stage=3"),
}


@pytest.fixture
def plain(ranks: RankPool, here: Path, request) -> dict[int, dict[str, float]]:
    """Of a run by one process."""
    write_tagged(here / "tagged.jsonl", 300, seed=1)
    write_tagged(here / "tagged-held-out.jsonl", 61, seed=2)
    run = RunDir(here / "runs" / f"tokens-{request.param}")
    if not run.steps():
        run = start(ranks, config_of(f"tokens-{request.param}", base_of(here, request.param)), *TASK)
    return reported(run)


@pytest.mark.parametrize(
    ("family", "plain", "layout"),
    [("llama", "llama", "tokens-cp2"), ("bert", "bert", "tokens-tp2"), ("bert", "bert", "tokens-zero3")],
    indirect=["plain"],
)
def test_losses_and_metrics_of_one_process(ranks: RankPool, here: Path, family, plain, layout) -> None:
    run = start(ranks, config_of(f"{layout}-{family}", base_of(here, family)), *TASK, *LAYOUTS[layout])
    found = reported(run)
    assert plain.keys() == found.keys()
    for step, values in plain.items():
        names = ["loss", "cross_entropy", "grad_norm"] if step else []
        names += ["validation_loss", "accuracy", "entity_f1", "validation_words"] if step % 2 == 0 else []
        for name in names:
            assert found[step][name] == pytest.approx(values[name], rel=1e-5, abs=1e-6), (step, name)


@pytest.mark.parametrize(("family", "plain"), [("llama", "llama"), ("bert", "bert")], indirect=["plain"])
def test_what_is_exported_finds_the_entities_that_the_run_did(here: Path, tmp_path: Path, family, plain) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    folder = export(here / "runs" / f"tokens-{family}", tmp_path / "out", dtype="float32").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    said, there, documents = [], [], []
    for number, line in enumerate((here / "tagged-held-out.jsonl").read_text().splitlines()):
        row = json.loads(line)
        encoded = tokenizer(" ".join(row["tokens"]), return_offsets_mapping=True, return_tensors="pt")
        ends = [end for _, end in encoded.pop("offset_mapping")[0].tolist()]
        with torch.no_grad():
            tags = model(**encoded).logits[0].argmax(-1).tolist()
        at = 0
        for word in row["tokens"]:
            said.append(model.config.id2label[tags[next(place for place, end in enumerate(ends) if end > at)]])
            at += len(word) + 1
        there += row["tags"]
        documents += [number] * len(row["tags"])
    found, expected = entities(said, documents), entities(there, documents)
    f1 = 2 * len(found & expected) / (len(found) + len(expected))
    assert plain[6]["validation_words"] == len(there)
    assert plain[6]["accuracy"] == pytest.approx(sum(map(str.__eq__, said, there)) / len(there))
    assert plain[6]["entity_f1"] == pytest.approx(f1)
    assert f1 > 0.1 or family == "bert", "six steps are enough for a llama to learn something"
