"""Activations on the host in plans: taken where nothing else fits, with what it costs of the host and of its link."""

import re

import pytest

from launcher.commands.render import plan_text
from launcher.installation import shipped
from launcher.planning.activation_offload import exposed_seconds, pinned_bytes
from launcher.planning.activations import activation_bytes
from launcher.planning.hardware import GIB, load_hardware
from launcher.planning.memory import HOST_USABLE, estimate_memory
from launcher.planning.plan import NothingFitsError, decided, make_plan
from launcher.planning.what_if import largest_batch
from megatrain.base.errors import ConfigError
from tests.launcher.planning.test_plan import LLAMA_8B
from tests.launcher.shapes import MODEL, layout

# inputs of 32 blocks are 48 GiB: more than a GPU has left
LONG = (
    *LLAMA_8B,
    "data.sequence_length=196608",
    "training.global_batch_size=8",
    "parallel.tensor_parallel=1",
    "parallel.context_parallel=1",
)
H100 = load_hardware("h100-sxm", 8)


def test_it_is_taken_only_where_nothing_else_fits(tiny):
    kinds = {plan.activation_checkpointing for plan in make_plan(tiny(*LLAMA_8B)).candidates}
    assert kinds == {"none", "selective", "full"}
    for refused in ("full", "selective", "none"):
        fixed = (f"parallel.activation_checkpointing={refused}", "parallel.offload_optimizer=none")
        with pytest.raises(NothingFitsError):
            make_plan(tiny(*LONG, *fixed))
    with pytest.raises(NothingFitsError):
        make_plan(tiny(*LONG), gpus_alone=True)

    config = tiny(*LONG)
    report = make_plan(config)
    chosen = report.chosen
    assert {plan.activation_checkpointing for plan in report.candidates} == {"offload"}
    assert {plan.layout.offload_optimizer for plan in report.candidates} == {"none"}, "activations leave first"
    run = decided(config, chosen)
    assert run.parallel.activation_checkpointing == "offload"
    text = plan_text(run, report)
    assert "activations on the host" in text
    assert "GiB per rank: inputs of blocks" in text
    assert re.search(r"since no layout fits without: the nearest needs [\d.]+ GiB per rank", text)
    assert report.to_json()["why_offload"] == report.why_offload
    assert chosen.memory.host == 2 * GIB * chosen.layout.recomputing(32), "1.5 GiB each, rounded up"


def test_one_that_is_asked_for_needs_no_reason(tiny):
    config = tiny(*LLAMA_8B, "parallel.activation_checkpointing=offload")
    report = make_plan(config)
    assert report.why_offload == ""
    assert "since no layout fits" not in plan_text(decided(config, report.chosen), report)


def test_it_costs_the_device_two_inputs_and_the_host_one_a_block():
    settings = {"sequence_length": 1024, "precision": "bf16"}
    full, offload = (layout(activation_checkpointing=kind) for kind in ("full", "offload"))
    one = 4 * 1024 * MODEL.hidden_size * 2  # bytes of a block's input
    kept, freed = (activation_bytes(MODEL, each, device="cuda", compiled=True, **settings) for each in (full, offload))
    assert kept.kept - freed.kept == (4 - 1) * one
    assert kept.in_backward(0) - freed.in_backward(0) == (4 - 2) * one
    assert freed.in_backward(3) - kept.in_backward(3) == (2 - 1) * one
    assert pinned_bytes(MODEL, offload, 1024, "bf16") == 4 * one
    assert pinned_bytes(MODEL, offload, 1025, "bf16") == 4 * 2 * one, "torch rounds pinned memory up"
    halves = layout(activation_checkpointing="offload", tensor_parallel=2, sequence_parallel=True, recompute_blocks=3)
    assert pinned_bytes(MODEL, halves, 1024, "bf16") == 3 * one / 2
    assert pinned_bytes(MODEL, full, 1024, "bf16") == 0
    memory = estimate_memory(MODEL, offload, hardware=H100, **settings)
    assert memory.host == 4 * one
    assert estimate_memory(MODEL, offload, hardware=load_hardware("cpu", 2), **settings).host == 0


def test_copies_cost_what_computation_does_not_hide():
    settings = {"sequence_length": 1024, "precision": "bf16", "hardware": H100}
    offload = layout(activation_checkpointing="offload")
    copy = 4 * 1024 * MODEL.hidden_size * 2 / 45e9
    assert exposed_seconds(MODEL, offload, forward=2 * copy, backward=3 * copy, **settings) == 0
    found = exposed_seconds(MODEL, offload, forward=0.5 * copy, backward=0.75 * copy, **settings)
    assert found == pytest.approx(4 * 0.75 * copy)


def test_in_a_step_of_a_large_model_nothing_of_them_is_seen(tiny):
    fixed = (*LLAMA_8B, "parallel.zero_stage=3", "parallel.tensor_parallel=1", "parallel.context_parallel=1")
    fixed = (*fixed, "training.micro_batch_size=1", "parallel.recompute_blocks=all")
    (full,) = make_plan(tiny(*fixed, "parallel.activation_checkpointing=full")).candidates
    (offload,) = make_plan(tiny(*fixed, "parallel.activation_checkpointing=offload")).candidates
    assert offload.time == full.time
    assert offload.memory.total < full.memory.total


def test_the_host_limits_it(tmp_path, tiny):
    profile = (shipped("configs/hardware") / "h100-sxm.yaml").read_text()
    (tmp_path / "small.yaml").write_text(re.sub(r"host: \{memory_gib: \d+", "host: {memory_gib: 200", profile))
    all_of_them = ("parallel.activation_checkpointing=offload", "parallel.recompute_blocks=all")
    hardware = f"cluster.hardware={tmp_path / 'small.yaml'}"
    with pytest.raises(
        NothingFitsError, match=rf"needs 64.0 GiB of its host per rank, and {25 * HOST_USABLE:.1f} GiB can be used"
    ):
        make_plan(tiny(*LONG, hardware, *all_of_them, "parallel.offload_optimizer=none"))
    (tmp_path / "none.yaml").write_text(re.sub(r"\nhost: .*", "", profile))
    hardware = f"cluster.hardware={tmp_path / 'none.yaml'}"
    with pytest.raises(ConfigError, match=r"activation_checkpointing: offload: none does not say what its host has"):
        make_plan(tiny(*LLAMA_8B, hardware, *all_of_them))
    with pytest.raises(NothingFitsError):  # auto does not take what it does not know
        make_plan(tiny(*LONG, hardware))


def test_the_largest_batch_is_that_of_gpus_alone_unless_the_file_says_more(tiny):
    fixed = (*LONG, "parallel.zero_stage=3", "data.sequence_length=65536")
    alone, more = (
        int(re.search(r"largest micro-batch: (\d+)", largest_batch(tiny(*fixed, *also)))[1])
        for also in ((), ("parallel.activation_checkpointing=offload",))
    )
    assert alone < more
