"""Hierarchical partitioning (`zero_hpz_partition_size`): bit for bit the losses of plain ZeRO-3, whatever was loaded.

Neighbours of two stand for those of a node.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from launcher.planning.layout import Layout as PlannedLayout
from launcher.planning.zero import number_bytes, zero_bytes
from megatrain.run.directory import RunDir
from tests.distributed.layouts import Layout, Run, snapshot_of, store_of
from tests.distributed.memory import Case, Measured, measure
from tests.distributed.memory import _model as model_of
from tests.distributed.ranks import RankPool
from tests.distributed.test_frozen import frozen_run
from tests.distributed.test_memory import predict

pytestmark = pytest.mark.distributed

SAVED_AT, UNTIL = 2, 4
PLAIN = Layout(3, 1, 4)
WITH = replace(PLAIN, hpz=2)
Losses = list[tuple[float, float]]


@contextmanager
def as_for_a_large_model() -> Iterator[None]:
    """No weight stays gathered; else none of these would be gathered again."""
    import launcher.deepspeed_config as module

    real = module.deepspeed_config

    def settings(*arguments):
        settings = real(*arguments)
        for key in ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance"):
            settings["zero_optimization"][f"stage3_{key}"] = 0
        return settings

    with patch.object(module, "deepspeed_config", settings):
        yield


def trained(layout: Layout, micro_batch: int) -> tuple[Losses, dict[tuple[int, ...], int]]:
    """Losses and norms; and how many elements, of whole weights, each group of ranks gathered in the last step."""
    import torch.distributed as dist

    gathered: dict[tuple[int, ...], int] = {}
    gather = dist.all_gather_into_tensor

    def seen(*, output_tensor, group, **others):
        among = tuple(dist.get_process_group_ranks(group))
        gathered[among] = gathered.get(among, 0) + output_tensor.numel()
        return gather(output_tensor=output_tensor, group=group, **others)

    with as_for_a_large_model(), patch.object(dist, "all_gather_into_tensor", seen):
        run = Run(replace(layout, micro_batch=micro_batch))
        losses = run.train(0, UNTIL - 1)
        gathered.clear()
        return [*losses, *run.train(UNTIL - 1, UNTIL)], gathered


@pytest.mark.parametrize("micro_batches", [1, pytest.param(2, marks=pytest.mark.full)])
def test_losses_stay_and_weights_are_gathered_from_all_replicas_once_a_step(ranks: RankPool, micro_batches) -> None:
    plain = ranks.run(4, trained, PLAIN, 2 // micro_batches)
    found = ranks.run(4, trained, WITH, 2 // micro_batches)
    assert [losses for losses, _ in found] == [losses for losses, _ in plain], "bit for bit"
    everyone, passes = (0, 1, 2, 3), 2 * micro_batches
    for rank, (_, gathered) in enumerate(found):
        neighbours = (0, 1) if rank < 2 else (2, 3)
        once = plain[rank][1][everyone] / passes
        assert gathered == {everyone: once, neighbours: (passes - 1) * once}


def saved(layout: Layout, folder: str) -> Losses:
    with as_for_a_large_model():
        run = Run(layout)
        run.train(0, SAVED_AT)
        store_of(run, folder).save(snapshot_of(run, SAVED_AT))
        return run.train(SAVED_AT, UNTIL)


def resumed(layout: Layout, folder: str) -> Losses:
    """By an engine that has computed with other weights, and has second copies of those."""
    with as_for_a_large_model():
        run = Run(layout)
        run.engine.evaluate(next(run.micro_batches(0)))
        store_of(run, folder).load(RunDir(folder).step(SAVED_AT), run.engine.sharded_state())
        run.engine.after_load(optimizer_step=SAVED_AT)
        return run.train(SAVED_AT, UNTIL)


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        (Layout(1, 1, 1, micro_batch=4), WITH),
        pytest.param(WITH, Layout(2, 2, 1, micro_batch=4), marks=pytest.mark.full),
        pytest.param(Layout(3, 2, 1, "bf16"), replace(WITH, precision="bf16"), marks=pytest.mark.full),
        pytest.param(WITH, Layout(3, 2, 2, hpz=2), marks=pytest.mark.full),
    ],
    ids=str,
)
def test_a_checkpoint_is_resumed_with_and_without(ranks: RankPool, tmp_path: Path, writer: Layout, reader: Layout):
    went_on = ranks.run(writer.world_size, saved, writer, str(tmp_path))[0]
    found = ranks.run(reader.world_size, resumed, reader, str(tmp_path))
    tolerance = 1e-5 if writer.precision == "fp32" else 1e-2
    for mine, theirs in zip(found[0], went_on, strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance)
    if reader.hpz > 1:
        plain = ranks.run(reader.world_size, resumed, replace(reader, hpz=1), str(tmp_path))
        assert found == plain, "bit for bit"


def partly_frozen(layout: Layout) -> Losses:
    """Second copies of frozen weights are never made again, once they are there."""
    with as_for_a_large_model():
        return frozen_run(layout).train(0, 2)


@pytest.mark.full
@pytest.mark.parametrize(
    ("plain", "run"),
    [
        (PLAIN, partly_frozen),
        (replace(PLAIN, compile=True, checkpointing="full"), partly_frozen),
        (replace(PLAIN, precision="bf16", checkpointing="offload"), "trained"),
        (replace(PLAIN, offload="cpu"), "trained"),
        (Layout(3, 1, 2, context=2), "trained"),
        (Layout(3, 2, 2, sequence_parallel=True), "trained"),
        (Layout(3, 2, 4, micro_batch=1), "trained"),
    ],
    ids=lambda value: str(value) if isinstance(value, Layout) else "",
)
def test_with_all_else_losses_stay_as_well(ranks: RankPool, plain: Layout, run) -> None:
    function, more = (trained, (plain.micro_batch,)) if run == "trained" else (run, ())
    found = ranks.run(plain.world_size, function, replace(plain, hpz=2), *more)
    expected = ranks.run(plain.world_size, function, plain, *more)
    if more:
        found, expected = ([losses for losses, _ in each] for each in (found, expected))
    assert found == expected


# a second copy of the weights between each two of four replicas, of a model that lets go of its blocks
WITH_HPZ = [
    Case(
        name="a second copy",
        model=model_of(6, 512, 8, 8, 512, 1024),  # no weight is so small that it stays
        layout=PlannedLayout(
            tensor_parallel=1,
            data_parallel=4,
            zero_stage=3,
            sequence_parallel=False,
            micro_batch_size=1,
            gradient_accumulation_steps=steps,
            activation_checkpointing="none",
            zero_hpz_partition_size=2,
        ),
        sequence_length=64,
        precision=precision,
    )
    for steps, precision in ((1, "bf16"), (2, "fp32"))
]


def measure_as_large(case: Case) -> Measured:
    """As of a model of more than 10⁹ parameters: ZeRO-3 keeps no more than three blocks gathered."""
    with patch("launcher.planning.zero.LIVE_PARAMETERS", 1):
        return measure(case)


@pytest.mark.full
@pytest.mark.parametrize("case", WITH_HPZ, ids=str)
def test_a_second_copy_takes_what_is_planned(ranks: RankPool, case: Case) -> None:
    without = replace(case, layout=replace(case.layout, zero_hpz_partition_size=1))
    one, other = (ranks.run(4, measure_as_large, each)[0] for each in (case, without))
    with patch("launcher.planning.zero.LIVE_PARAMETERS", 1):
        zero = zero_bytes(case.model, case.layout, case.precision)
        more = predict(case).tensors - predict(without).tensors
    assert zero.standing + zero.starting == pytest.approx(one.start, rel=0.01)
    copy = number_bytes(case.precision) * case.model.parameters / 2
    assert more == pytest.approx(copy, rel=0.01)
    assert one.start - other.start == pytest.approx(copy, rel=0.01)
    assert one.step - other.step == pytest.approx(copy, rel=0.01)
    assert 0.4 * copy < one.backward - other.backward <= copy, "of blocks that were let go, all but some of six"
