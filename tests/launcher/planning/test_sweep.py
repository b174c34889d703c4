"""Sweeps over nodes: what can be asked, what a row says, and the picture."""

import pytest

from launcher.commands.plan import on_gpus
from launcher.planning.hardware import load_hardware
from launcher.planning.sweep import parse_sweep, plan_on, sweep, sweep_png, sweep_text
from megatrain.base.errors import ConfigError, PreflightError

GPUS = ("cluster.hardware=h100-sxm", "cluster.gpus_per_node=8", "training.global_batch_size=64")


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("nodes=4", [4]),
        ("nodes=1,2,8", [1, 2, 8]),
        ("nodes=1,2,4,…,64", [1, 2, 4, 8, 16, 32, 64]),
        ("nodes=1,2,...,8", [1, 2, 4, 8]),
        ("nodes=2,4,6,…,12", [2, 4, 6, 8, 10, 12]),
        ("nodes=1,2,4,…,100", [1, 2, 4, 8, 16, 32, 64, 100]),
    ],
)
def test_what_can_be_swept(text, counts):
    assert parse_sweep(text) == counts


@pytest.mark.parametrize(
    "text", ["", "nodes=", "nodes=0", "gpus=8", "nodes=1,…", "nodes=…,8", "nodes=a", "nodes=9999999"]
)
def test_what_cannot(text):
    with pytest.raises(ConfigError, match="--sweep"):
        parse_sweep(text)


def test_a_row_counts_checkpoints_and_failures(tiny):
    config = tiny(*GPUS)
    (row,) = sweep(config, [2])
    training = config.total_steps * row.plan.step_seconds / 3600
    assert row.hours == pytest.approx(training / row.reliability.goodput)
    assert row.gpu_hours == row.hours * 16
    assert row.tokens_per_second < row.plan.tokens_per_second_per_gpu * 16


def test_more_nodes_are_faster_and_cost_more(tiny):
    model = ("model.hidden_size=2048", "model.intermediate_size=8192")
    rows = sweep(tiny(*GPUS, *model, "training.global_batch_size=4096"), [1, 2, 4])
    assert [row.tokens_per_second for row in rows] == sorted(row.tokens_per_second for row in rows)
    assert [row.gpu_hours for row in rows] == sorted(row.gpu_hours for row in rows)


def test_where_nothing_fits_the_row_says_why(tiny):
    config = tiny(*GPUS, "parallel.tensor_parallel=1")
    rows = sweep(config, [1, 16])
    assert rows[1].plan is None
    assert "128 data-parallel ranks do not divide" in rows[1].reason
    assert rows[1].to_json() == {"nodes": 16, "gpus": 128, "reason": rows[1].reason}
    assert rows[1].reason in sweep_text(config, rows)


def test_the_picture(tiny, tmp_path):
    pytest.importorskip("matplotlib")
    config = tiny(*GPUS)
    sweep_png(config, sweep(config, [1, 2]), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(PreflightError, match="cannot be written"):
        sweep_png(config, sweep(config, [1, 2]), tmp_path / "no" / "sweep.png")
    with pytest.raises(PreflightError, match="nothing to draw"):
        sweep_png(config, sweep(tiny(*GPUS, "parallel.tensor_parallel=1"), [16]), tmp_path / "none.png")


def test_gpus_replaces_the_cluster(tiny):
    config = tiny(*GPUS)
    for gpus, nodes, each in ((4, 1, 4), (8, 1, 8), (32, 4, 8)):
        cluster = on_gpus(config, gpus).cluster
        assert (cluster.nodes, cluster.gpus_per_node) == (nodes, each)
    with pytest.raises(ConfigError, match="--gpus 12: must be at most 8, or a multiple"):
        on_gpus(config, 12)
    assert load_hardware("h100-sxm", 8).max_ranks_per_node == 8


def test_a_row_on_part_of_a_node(tiny):
    assert plan_on(tiny(*GPUS), 1, 2).gpus == 2
