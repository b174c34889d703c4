"""A run is as long as it was asked to be, whatever its batches; and one whose numbers fail keeps what it had."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.runs.status import run_status
from megatrain.checkpoint.manifest import verify
from megatrain.checkpoint.progress import is_complete, saved_progress
from megatrain.checkpoint.state import read_state
from megatrain.config.file import load_config
from megatrain.monitor.metrics_file import read_metrics
from megatrain.run.directory import RunDir
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start

pytestmark = pytest.mark.distributed

LENGTH = 40
RUN = """
model: {num_hidden_layers: 1, hidden_size: 8, num_attention_heads: 1, intermediate_size: 8}
tokenizer: {path: tokenizer}
data: {sequence_length: 40, train: [{path: a}], validation: [{path: b}]}
training: {global_batch_size: 4, precision: fp32}
optimizer: {learning_rate: 1e-3}
parallel: {compile: false}
checkpoint: {interval_steps: 2, keep_last: 1}
evaluation: {interval_steps: 100, sequences: 2}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
"""
TUNED = """
finetune: {train: [pairs.jsonl], sequence_length: 40}
training: {global_batch_size: 4, precision: fp32}
parallel: {compile: false}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
"""


def rows_of(run: RunDir) -> list[tuple[int, int, float]]:
    """Step, samples consumed and learning rate of each report."""
    rows = [row for row in read_metrics(run.metrics) if "loss" in row]
    return [(row["step"], row["tokens"] // LENGTH, row["learning_rate"]) for row in rows]


@pytest.mark.parametrize(
    ("batches", "samples"),
    [
        ([4, 8], [4, 8, 12, 16, 20, 28, 36, 44]),
        ([8, 4], [8, 16, 20, 24, 28, 32, 36, 40]),
        ([4, 8, 2], [4, 8, 12, 16, 20, 28, 30, 32, 34, 36, 38, 40]),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["train", "finetune"])
def test_a_run_given_in_tokens_reads_them_whatever_its_batches(
    ranks: RankPool, here: Path, kind: str, batches: list[int], samples: list[int]
) -> None:
    text, name = RUN, f"{kind}-{'-'.join(map(str, batches))}"
    if kind == "finetune":
        if not Path("runs/base").exists():
            start(ranks, RUN, "run.name=base", "training.steps=1")
        text = f"{TUNED}\nrun: {{name: {name}}}"
    ends = {2: [20, 40], 3: [20, 28, 40]}[len(batches)] if batches[0] < 8 else [16, 40]
    for batch, end in zip(batches, ends, strict=True):
        given = [f"run.name={name}", f"training.tokens={end * LENGTH}", f"training.global_batch_size={batch}"]
        run = start(ranks, text, *given, *(["finetune.base=runs/base"] if kind == "finetune" else []))
        assert is_complete(run, load_config(run.config))
        one = run_status(run)
        assert (one.state, one.step, one.total_steps) == ("finished", run.steps()[-1], run.steps()[-1])
    assert [row[1] for row in rows_of(run)] == samples
    assert [row[0] for row in rows_of(run)] == list(range(1, len(samples) + 1))
    assert (
        saved_progress(run).samples == samples[-1] == read_state(run.step(len(samples))).facts()["loader"]["position"]
    )
    assert rows_of(run)[-1][2] == pytest.approx(0.1 * load_config(run.config).optimizer.learning_rate)


def test_resume_from_a_checkpoint_of_before_batch_sizes_were_recorded(ranks: RankPool, here: Path) -> None:
    run = start(ranks, RUN, "run.name=old", "training.steps=2")
    manifest = run.step(2) / "MANIFEST.json"
    state, content = run.step(2) / "state.json", json.loads(manifest.read_text())
    state.write_text(
        json.dumps({key: value for key, value in read_state(run.step(2)).facts().items() if key != "batches"})
    )
    rewrite(run.step(2), content)
    start(ranks, RUN, "run.name=old", f"training.tokens={16 * LENGTH}", "training.global_batch_size=8")
    assert [row[:2] for row in rows_of(run)] == [(1, 4), (2, 8), (3, 16)]


def rewrite(folder: Path, content: dict) -> None:
    """Make the manifest true of what lies there now."""
    from megatrain.checkpoint.manifest import read_manifest, sha256_of, write_manifest

    manifest = read_manifest(folder)
    record = manifest.files["state.json"]
    size, digest = (folder / "state.json").stat().st_size, sha256_of(folder / "state.json")
    files = manifest.files | {"state.json": type(record)(bytes=size, sha256=digest)}
    values = {name: getattr(manifest, name) for name in ("step", "saved_at", "world_size", "layout", "version")}
    write_manifest(folder, type(manifest)(**values, files=files))


def test_a_run_that_is_past_its_end_has_nothing_to_do(ranks: RankPool, here: Path) -> None:
    run = start(ranks, RUN, "run.name=past", "training.steps=4")
    before = run.metrics.read_text()
    start(ranks, RUN, "run.name=past", "training.steps=2")
    assert run.steps() == [4]
    assert run.metrics.read_text() == before
    assert run_status(run).state == "finished"


@pytest.mark.parametrize("zero", [1, 3])
def test_a_loss_that_is_not_finite_ends_a_run_and_leaves_its_checkpoints(
    ranks: RankPool, here: Path, zero: int
) -> None:
    name, layout = f"run.name=nan-{zero}", [f"parallel.zero_stage={zero}", "cluster.gpus_per_node=2"]
    run = start(ranks, RUN, name, *layout, "training.steps=4")
    wild = ["optimizer.learning_rate=1e20", "optimizer.gradient_clipping=0", "training.steps=20"]
    with pytest.raises(AssertionError, match=r"NonFiniteError: step \d+: .*finite") as raised:
        start(ranks, RUN, name, *layout, *wild)
    assert str(raised.value).count("NonFiniteError: step") == 2, "on both ranks"
    assert "The newest checkpoint is of step" in str(raised.value)
    (kept,) = run.steps()
    assert not verify(run.step(kept))
    from megatrain.checkpoint.read import read_tensors

    assert all(tensor.isfinite().all() for tensor in read_tensors(run.step(kept)).values())
    assert all(row["loss"] is not None for row in read_metrics(run.metrics) if "loss" in row)
    assert not [1 for before, after in pairwise(rows_of(run)) if after[1] <= before[1]]
