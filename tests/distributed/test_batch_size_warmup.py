"""A run that warms its batch size up takes the steps of one whose batches are set by hand, on any layout, and goes on
with them wherever it resumes."""

from pathlib import Path

import pytest

from megatrain.monitor.metrics_file import read_metrics
from megatrain.run.directory import RunDir
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start

pytestmark = pytest.mark.distributed

RUN = """
model: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, intermediate_size: 16}
tokenizer: {path: tokenizer}
data: {sequence_length: 40, train: [{path: a}], prefetch: 3, reading: {threads: 2}}
training: {steps: 5, global_batch_size: 8, micro_batch_size: 1, precision: fp32}
optimizer: {learning_rate: 1e-2}
schedule: {name: constant}
parallel: {compile: false}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
"""
# its steps begin at the samples 0, 2, 4, 8, 12 and 20
WARMUP = (
    "training.batch_size_warmup=[{until_sample: 3, global_batch_size: 2}, {until_sample: 12, global_batch_size: 4}]"
)


def reported(run: RunDir, *names: str) -> list[list[float]]:
    rows = [row for row in read_metrics(run.metrics) if "loss" in row]
    return [[row[name] for row in rows] for name in names]


def layout(zero: int, ranks: int, tensor: int = 1) -> list[str]:
    return [f"parallel.zero_stage={zero}", f"cluster.gpus_per_node={ranks}", f"parallel.tensor_parallel={tensor}"]


@pytest.fixture(scope="module")
def by_hand(ranks: RankPool, project: Path) -> list[float]:
    """Losses of one rank without ZeRO, whose batch size is another one at each resume."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        for steps, batch in ((2, 2), (4, 4), (5, 8)):
            given = [f"training.steps={steps}", f"training.global_batch_size={batch}"]
            run = start(ranks, RUN, "run.name=by-hand", *layout(0, 1), *given)
        return reported(run, "loss")[0]


LAYOUTS = [
    layout(2, 2),
    pytest.param(layout(0, 2), marks=pytest.mark.full),
    pytest.param(layout(1, 2), marks=pytest.mark.full),
    pytest.param(layout(3, 2, tensor=2), marks=pytest.mark.full),
    pytest.param([*layout(2, 2), "parallel.offload_optimizer=cpu"], marks=pytest.mark.full),
    pytest.param([*layout(2, 2, tensor=1), "parallel.context_parallel=2"], marks=pytest.mark.full),
]


@pytest.mark.parametrize("given", LAYOUTS, ids="-".join)
def test_it_is_the_run_whose_batches_are_set_by_hand(
    ranks: RankPool, here: Path, by_hand: list[float], given: list[str]
) -> None:
    name = "-".join(one.partition("=")[2] for one in given)
    run = start(ranks, RUN, f"run.name=warm-{name}-{len(given)}", *given, WARMUP)
    losses, tokens, sizes, rate, seconds = reported(
        run, "loss", "tokens", "global_batch_size", "tokens_per_second", "step_seconds"
    )
    assert losses == pytest.approx(by_hand, rel=1e-5)
    assert tokens == [40 * samples for samples in (2, 4, 8, 12, 20)]
    assert sizes == [2, 2, 4, 4, 8]
    assert [a * b for a, b in zip(rate, seconds, strict=True)] == pytest.approx([40 * size for size in sizes])


def test_it_resumes_within_a_stage_on_other_ranks(ranks: RankPool, here: Path, by_hand: list[float]) -> None:
    name = "run.name=resumed"
    start(ranks, RUN, name, *layout(1, 1), WARMUP, "training.steps=3")
    run = start(ranks, RUN, name, *layout(3, 2), WARMUP)
    assert reported(run, "loss")[0] == pytest.approx(by_hand, rel=1e-5)
    assert reported(run, "global_batch_size") == [[2, 2, 4, 4, 8]]


@pytest.mark.full
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_in_bf16_as_well(ranks: RankPool, here: Path, zero: int) -> None:
    precision, lines = "training.precision=bf16", []
    for name, warm in (("warm", [WARMUP]), ("hand", [])):
        for steps, batch in ((2, 2), (4, 4), (5, 8)):
            batches = [] if warm else [f"training.global_batch_size={batch}"]
            given = [f"run.name={name}-bf16-{zero}", f"training.steps={steps}", precision, *warm, *batches]
            run = start(ranks, RUN, *given, *layout(zero, 2))
        lines.append(reported(run, "loss", "grad_norm"))
    assert lines[0] == lines[1], "bit for bit"
