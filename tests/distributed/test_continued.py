"""A continued pretraining starts from its base's weights, and replays its data the same under every layout."""

from pathlib import Path

import pytest

from megatrain.run.directory import RunDir
from megatrain.run.inputs import load_run
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import reported

pytestmark = pytest.mark.distributed

BASE = """
run: {name: first-domain}
model: {num_hidden_layers: 2, hidden_size: 24, num_attention_heads: 2, intermediate_size: 32}
tokenizer: {path: tokenizer}
data: {sequence_length: 48, train: [{path: a}], validation: {old: [{path: a}]}}
training: {steps: 3, global_batch_size: 4, precision: fp32}
optimizer: {learning_rate: 1.0e-2}
evaluation: {sequences: 6}
parallel: {compile: false}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 1}
"""
CONTINUED = """
run: {name: NAME}
continued: {base: runs/first-domain, replay: 0.5}
data: {sequence_length: 48, train: [{path: b}], validation: {old: [{path: a}], new: [{path: b}]}}
training: {steps: 3, global_batch_size: 4, precision: fp32}
optimizer: {learning_rate: 1.0e-3}
schedule: {name: constant, warmup_steps: 0}
evaluation: {sequences: 6}
checkpoint: {interval_steps: 2}
parallel: {compile: false}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 1}
"""
ZERO3 = ("cluster.gpus_per_node=2", "parallel.zero_stage=3")


@pytest.fixture
def plain(ranks: RankPool, here: Path) -> RunDir:
    start(ranks, BASE)
    return start(ranks, CONTINUED.replace("NAME", "second-domain"))


def test_it_goes_on_from_the_base_on_every_layout(ranks: RankPool, here: Path, plain: RunDir) -> None:
    values, before = reported(plain), reported(RunDir(here / "runs" / "first-domain"))
    assert values[0]["old/validation_loss"] == pytest.approx(before[3]["old/validation_loss"], abs=1e-6)
    assert values[0]["old/bits_per_byte"] > 0, "by the base's tokenizer"
    sources = load_run(plain).data.train
    assert [(source.path, source.weight, source.replayed) for source in sources] == [("b", 1, False), ("a", 1, True)]
    text = CONTINUED.replace("NAME", "second-domain-zero3")
    start(ranks, text, *ZERO3, "training.steps=2")
    found = reported(start(ranks, text, *ZERO3))
    for step in (1, 2, 3):
        assert found[step]["loss"] == pytest.approx(values[step]["loss"], abs=1e-5), step
    for name in ("old/validation_loss", "new/validation_loss"):
        assert found[3][name] == pytest.approx(values[3][name], abs=1e-5)
    without = reported(start(ranks, CONTINUED.replace("NAME", "no-replay"), "continued.replay=0.0"))
    assert without[0]["new/validation_loss"] == values[0]["new/validation_loss"]
    assert without[2]["loss"] != values[2]["loss"]
