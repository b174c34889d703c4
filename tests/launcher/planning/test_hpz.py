"""Hierarchical partitioning in plans: weighed against what the network costs, with its second copy."""

import re
from dataclasses import replace

import pytest

from launcher.commands.render import plan_text
from launcher.deepspeed_config import deepspeed_config
from launcher.installation import shipped
from launcher.planning.data_parallel import data_parallel_bytes, data_parallel_seconds
from launcher.planning.hardware import load_hardware
from launcher.planning.hpz import hpz_sizes
from launcher.planning.plan import NothingFitsError, decided, make_plan, resolve
from launcher.planning.zero import local_parameters, second_copy, zero_bytes
from tests.launcher.planning.test_plan import LLAMA_8B
from tests.launcher.shapes import MODEL, layout

NODES = (*LLAMA_8B, "cluster.nodes=8", "parallel.zero_stage=3", "parallel.tensor_parallel=1")
SHORT = ("training.global_batch_size=64", "data.sequence_length=2048")  # little to compute for a gather
LONG = ("training.global_batch_size=512", "parallel.activation_checkpointing=selective")


@pytest.fixture
def slow(tmp_path) -> str:
    """An H100 whose network is a tenth as fast."""
    profile = (shipped("configs/hardware") / "h100-sxm.yaml").read_text()
    (tmp_path / "slow.yaml").write_text(re.sub(r"network: \{bandwidth: 45", "network: {bandwidth: 4.5", profile))
    return f"cluster.hardware={tmp_path / 'slow.yaml'}"


def test_it_is_taken_where_the_network_costs_more_than_it_does(tiny, slow):
    assert make_plan(tiny(*NODES, *LONG)).chosen.layout.zero_hpz_partition_size == 1, "computation hides most"
    config = tiny(*NODES, *LONG, slow)
    report = make_plan(config)
    assert report.chosen.layout.zero_hpz_partition_size == 8
    assert {plan.layout.zero_hpz_partition_size for plan in report.candidates} == {1, 8}
    passes = 2 * report.chosen.gradient_accumulation_steps
    said = (
        rf"1 of {passes} gathers of a step crosses the network, the others stay among 8 ranks: [\d.]+ ms less, for 1.9"
    )
    assert re.match(said, report.why_hpz)
    run = resolve(config, report.chosen)
    text = plan_text(decided(config, report.chosen), report)
    assert f"hpZ      {report.why_hpz}" in text
    assert "ZeRO-3 (hpZ 8), tensor 1" in text
    assert deepspeed_config(run, 64)["zero_optimization"]["zero_hpz_partition_size"] == 8


def test_one_that_is_asked_for_is_told_what_it_brings(tiny):
    report = make_plan(tiny(*NODES, *LONG, "parallel.zero_hpz_partition_size=4"))
    assert {plan.layout.zero_hpz_partition_size for plan in report.candidates} == {4}
    assert "stay among 4 ranks" in report.why_hpz
    config = tiny(*NODES, *SHORT, "parallel.zero_hpz_partition_size=1")
    report = make_plan(config)
    assert {plan.layout.zero_hpz_partition_size for plan in report.candidates} == {1}
    assert report.why_hpz == ""
    assert "zero_hpz_partition_size" not in deepspeed_config(resolve(config, report.chosen), 64)["zero_optimization"]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ("parallel.zero_stage=1", "parallel.zero_hpz_partition_size=8"),
            "zero_hpz_partition_size=8 needs zero_stage 3",
        ),
        (("parallel.zero_hpz_partition_size=3",), "zero_hpz_partition_size=3 does not divide 64 replicas"),
        (("parallel.zero_hpz_partition_size=16",), "zero_hpz_partition_size=16 does not divide a node of 8 ranks"),
        (
            ("cluster.nodes=1", "parallel.zero_hpz_partition_size=8"),
            "zero_hpz_partition_size=8: these are all replicas",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(tiny, overrides, reason):
    with pytest.raises(NothingFitsError, match=re.escape(reason)):
        make_plan(tiny(*NODES, *overrides))


def test_a_stage_that_is_open_is_3_where_it_is_asked_for(tiny):
    chosen = make_plan(tiny(*LLAMA_8B, "cluster.nodes=8", "parallel.zero_hpz_partition_size=8")).chosen
    assert (chosen.zero_stage, chosen.layout.zero_hpz_partition_size) == (3, 8)


def test_it_is_tried_for_nodes_of_a_model_that_lets_go_of_weights():
    several = {"releases": True, "zero_stage": 3, "replicas": 64, "replicas_of_node": 8}
    assert hpz_sizes("auto", **several) == (1, 8)
    for change in ({"releases": False}, {"zero_stage": 2}, {"replicas": 8}, {"replicas_of_node": 1}, {"replicas": 12}):
        assert hpz_sizes("auto", **{**several, **change}) == (1,)
    assert hpz_sizes(2, **several) == (2,)


def test_bytes_of_the_second_copy_and_of_the_links(monkeypatch):
    plain = layout(data_parallel=16, zero_stage=3, gradient_accumulation_steps=4)
    near = replace(plain, zero_hpz_partition_size=8)
    psi = local_parameters(MODEL, 1)
    assert (second_copy(MODEL, plain, 2), second_copy(MODEL, near, 2)) == (0, 2 * psi / 8)
    without, small = (zero_bytes(MODEL, one, "bf16") for one in (plain, near))
    assert small.gathered == without.gathered, "of a small model no weight is let go before the end of a step"
    assert small.stepping - without.stepping == small.starting - without.starting == 2 * psi / 8
    monkeypatch.setattr("launcher.planning.zero.LIVE_PARAMETERS", 1)
    large = zero_bytes(MODEL, near, "bf16")
    assert large.gathered - zero_bytes(MODEL, plain, "bf16").gathered == 2 * psi / 8

    all_far, some_far = (data_parallel_bytes(MODEL, one, "bf16") for one in (plain, near))
    assert some_far.reduce == all_far.reduce
    assert (some_far.gather, some_far.near) == (all_far.gather / 8, 2 * 7 * psi * 7 / 8)
    settings = {"precision": "bf16", "ranks_per_node": 8, "hardware": load_hardware("h100-sxm", 8), "compute": 0.0}
    assert data_parallel_seconds(MODEL, near, **settings) < data_parallel_seconds(MODEL, plain, **settings)
