"""A base with new tokens is fine-tuned on any layout, and its export has them."""

import json
from pathlib import Path

import pytest

from megatrain.data.text.tokenizer import Tokenizer
from megatrain.huggingface.export import export
from megatrain.huggingface.grown import grow
from megatrain.run.inputs import load_run
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import base_of, reported
from tests.distributed.test_evaluate import SFT

pytestmark = [pytest.mark.distributed, pytest.mark.full]

LAYOUTS = {
    "tp2": ("cluster.gpus_per_node=2", "parallel.tensor_parallel=2"),
    "zero3": ("cluster.gpus_per_node=2", "parallel.zero_stage=3"),
}


def test_the_same_losses_on_any_layout(ranks: RankPool, here: Path) -> None:
    base = Path(base_of(here, "llama"))
    added = [f"<|{number}|>" for number in range(150)]  # more than the spare rows
    done = grow(base, here / "grown", added)
    assert done.rows > done.before
    pairs = ({"prompt": f"<|{number}|> of", "response": f"the <|{number + 1}|>"} for number in range(40))
    (here / "grown.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    text = SFT.replace("BASE", "grown").replace("pairs.jsonl", "grown.jsonl")
    plain = start(ranks, text.replace("sft-to-evaluate", "grown-plain"))
    expected = {step: row["validation_loss"] for step, row in reported(plain).items() if "validation_loss" in row}
    assert len(expected) == 2
    for name, layout in LAYOUTS.items():
        found = reported(start(ranks, text.replace("sft-to-evaluate", f"grown-{name}"), *layout))
        for step, loss in expected.items():
            assert found[step]["validation_loss"] == pytest.approx(loss, rel=1e-5), (name, step)
    assert load_run(plain).model.vocab_size == done.rows, "what is planned, too"
    folder = export(plain.path, here / "grown-exported").folder
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == done.rows
    assert Tokenizer.load(folder).vocab_size == max(done.ids.values()) + 1
