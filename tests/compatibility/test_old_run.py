"""A run as an earlier version left it: configuration keys since renamed, state.json of format 1, prepared data.

`run-state-1.tar.xz` holds runs/old, 4 steps of ZeRO-1 on two ranks, and its data. The numbers below are that version's
own: what it read of its checkpoint, and what it reported of steps 5 and 6.
"""

import tarfile
from pathlib import Path

import pytest

from megatrain.checkpoint.read import read_tensors
from megatrain.checkpoint.state import read_state
from megatrain.config.file import load_own_config
from megatrain.run.directory import RunDir
from tests import project

ARCHIVE = Path(__file__).with_name("run-state-1.tar.xz")
SUMS = {
    "weight.embedding.weight": -1.0782374051832448,
    "exp_avg_sq.embedding.weight": 0.08981186199712654,
    "weight.blocks.0.attention.query.weight": 0.39284130946180085,
    "exp_avg.blocks.0.mlp.down.weight": -7.42119920857931e-05,
    "weight.norm.weight": 15.99896615743637,
}
STEPS = [  # loss, gradient norm, learning rate
    (5.944452285766602, 0.7340142726898193, 0.00016583592135001261),
    (5.938511371612549, 0.7640526294708252, 0.00011999999999999999),
]
FILE = """
run: {name: old}
model: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, intermediate_size: 32, tie_word_embeddings: true}
tokenizer: {path: data/tokenizer}
data:
  sequence_length: 32
  train: [{path: data/train}]
  phases: [{from_sample: 24, sequence_length: 16}]
  shuffle: {mode: windowed, streams: 4, window_blocks: 1}
training: {steps: 6, global_batch_size: 8, precision: fp32, micro_batch_size: 2}
schedule: {warmup_steps: 1, min_lr_ratio: 0.2}
parallel: {compile: false}
checkpoint: {interval_steps: 2}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "run.yaml").write_text(FILE, encoding="utf-8")
    return tmp_path


def test_its_configuration_state_and_tensors_are_read(folder: Path) -> None:
    run = RunDir(folder / "runs" / "old")
    config = load_own_config(run.config)
    assert (config.data.phases[0].from_sample, config.data.shuffle.streams) == (24, 4)
    assert (config.checkpoint.interval_steps, config.slurm.signal_before_limit_seconds) == (2, 90)
    assert (config.task.name, config.monitor.sinks, config.model.family) == ("pretrain_lm", (), "llama")
    state = read_state(run.step(4))
    assert (state.format, state.step, state.parameters, state.model) == (1, 4, "all", config.model)
    tensors = read_tensors(run.step(4))
    assert {name: tensors[name].double().sum().item() for name in SUMS} == pytest.approx(SUMS, rel=1e-9)


@pytest.mark.parametrize(
    "layout",
    [pytest.param((1, 1), marks=pytest.mark.full, id="as it was"), pytest.param((3, 2), id="another layout")],
)
def test_it_resumes(folder: Path, layout: tuple[int, int]) -> None:
    zero, tensor = layout
    parallel = [f"parallel.zero_stage={zero}", f"parallel.tensor_parallel={tensor}"]
    said = project.megatrain(folder, "train", "run.yaml", *parallel, "parallel.context_parallel=1")
    assert "resume: step 4 from checkpoints/step-00000004 (saved on 2 ranks" in said
    run = RunDir(folder / "runs" / "old")
    rows = [(row["loss"], row["grad_norm"], row["learning_rate"]) for row in project.metrics(run)]
    assert len(rows) == 6
    assert rows[4:] == [pytest.approx(row, rel=1e-4) for row in STEPS]
    assert read_state(run.step(6)).format == 2
