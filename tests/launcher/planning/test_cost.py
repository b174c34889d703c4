"""Seconds a step: checked against published runs, and against what must hold between layouts."""

import pytest

from benchmarks.published import ROWS
from launcher.planning.cost import estimate_step, model_flops_utilization
from launcher.planning.data_parallel import data_parallel_bytes
from launcher.planning.hardware import load_hardware
from launcher.planning.layout import Layout
from megatrain.config.regularization import Passes
from megatrain.model.families.llama.section import LlamaSection

MPT_7B = LlamaSection(  # with a gated MLP of the same number of weights: 3 × 10922 for 2 × 16384
    num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, intermediate_size=10922, vocab_size=50432
)
BASE = {
    "tensor_parallel": 1,
    "data_parallel": 8,
    "zero_stage": 3,
    "sequence_parallel": False,
    "micro_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "activation_checkpointing": "none",
}


def step(model=MPT_7B, hardware="h100-sxm", ranks_per_node=8, length=2048, **changes):
    layout = Layout(**(BASE | changes))
    return estimate_step(
        model,
        layout,
        sequence_length=length,
        precision="bf16",
        ranks_per_node=ranks_per_node,
        hardware=load_hardware(hardware, ranks_per_node),
    )


@pytest.mark.parametrize(
    ("rows", "median", "largest"),
    [([row for row in ROWS if row.fitted], 0.05, 0.12), (ROWS, 0.10, 0.20)],
    ids=["used to choose the constants", "all"],
)
def test_published_runs(rows, median, largest):
    """benchmarks/published.py: as near as docs/planning.md says, and as near as is promised."""
    errors = sorted(abs(row.error) for row in rows)
    assert errors[len(errors) // 2] <= median
    assert errors[-1] <= largest, max(rows, key=lambda row: abs(row.error)).name


def test_the_parts_add_up_and_none_is_negative():
    time = step(tensor_parallel=2, context_parallel=2, data_parallel=2)
    parts = (
        time.compute,
        time.tensor_parallel + time.context_parallel + time.data_parallel,
        time.data,
        time.optimizer,
    )
    assert time.total == sum(parts)
    assert min(parts) >= 0


def test_one_rank_communicates_nothing():
    time = step(data_parallel=1)
    assert (time.tensor_parallel, time.context_parallel, time.data_parallel) == (0, 0, 0)


def test_sharing_sequences_shares_their_work_and_costs_two_all_to_alls_a_pass():
    alone = step(data_parallel=1, micro_batch_size=1, length=65536)
    shared = step(data_parallel=1, micro_batch_size=1, length=65536, context_parallel=4)
    assert alone.compute / shared.compute == pytest.approx(4, rel=0.01)
    moved = (
        65536 / 4 * 2 * (32 + 32) * 128 * 2 * 3 / 4
    )  # bytes per rank and pass: q, k, v and the output, all but its own
    assert shared.context_parallel == pytest.approx(32 * 2 * moved / 360e9, rel=0.1)
    again = step(data_parallel=1, context_parallel=4, activation_checkpointing="full").context_parallel
    assert again / step(data_parallel=1, context_parallel=4).context_parallel == pytest.approx(1.5)
    assert (
        step(data_parallel=1, context_parallel=4, ranks_per_node=2).context_parallel > 5 * shared.context_parallel / 8
    )


def test_context_parallel_ranks_are_replicas_for_zero():
    assert step(data_parallel=2, context_parallel=4).optimizer == step(data_parallel=8).optimizer
    assert step(data_parallel=2, context_parallel=4).data_parallel == pytest.approx(step().data_parallel, rel=0.5)


def test_recomputing_everything_makes_a_third_more_of_the_blocks():
    plain, full = step().compute, step(activation_checkpointing="full").compute
    assert 1.25 < full / plain < 1.34


def test_small_matmuls_are_slow():
    narrow = MPT_7B.model_copy(update={"hidden_size": 512, "num_attention_heads": 4, "intermediate_size": 1365})
    hardware = load_hardware("h100-sxm", 8)
    mfu = [
        model_flops_utilization(
            model, sequence_length=2048, tokens_per_second_per_gpu=8 * 2048 / step(model).compute, hardware=hardware
        )
        for model in (narrow, MPT_7B)
    ]
    assert mfu[0] < 0.8 * mfu[1]


def test_crossing_nodes_costs_what_the_network_is_slower():
    inside = step(data_parallel=8, zero_stage=1).data_parallel
    across = step(data_parallel=8, zero_stage=1, ranks_per_node=1).data_parallel
    assert across / inside == pytest.approx(360 / 45, rel=0.1)


def test_zero_3_pays_for_each_micro_batch_and_zero_1_once():
    def ratio(stage):
        twice = step(zero_stage=stage, gradient_accumulation_steps=2, ranks_per_node=1).data_parallel
        return twice / step(zero_stage=stage, ranks_per_node=1).data_parallel

    assert ratio(1) == 1
    assert ratio(3) > 1.5


def test_zero_2_reduces_in_each_micro_batch_and_zero_1_beside_the_last_backward_pass():
    """In units of all parameters in bf16, ZeRO-2's bytes are 2a + 1; ZeRO-1's reduction, in fp32, is mostly hidden."""

    def sent(stage, accumulation):
        layout = Layout(**(BASE | {"zero_stage": stage, "gradient_accumulation_steps": accumulation}))
        return data_parallel_bytes(MPT_7B, layout, "bf16").total / (2 * MPT_7B.parameters * 7 / 8)

    assert [sent(0, 4), sent(1, 4), sent(2, 4), sent(3, 4)] == pytest.approx([2, 3, 9, 12])
    one, two = (step(zero_stage=stage, ranks_per_node=1).data_parallel for stage in (1, 2))
    assert one < 0.8 * two, "as many bytes with one micro-batch, of which computation hides some"


def test_adding_up_gradients_moves_memory():
    more = [step(zero_stage=stage, gradient_accumulation_steps=4).optimizer for stage in (0, 1, 2, 3)]
    less = [step(zero_stage=stage).optimizer for stage in (0, 1, 2, 3)]
    moved = [(a - b) * 0.9 * 3000e9 / MPT_7B.parameters / 3 for a, b in zip(more, less, strict=True)]
    assert moved == pytest.approx([6, 10, 12, 20], rel=0.01), "bytes per parameter and further micro-batch"


def test_passes_of_regularisation_take_the_time_of_as_many_micro_batches() -> None:
    """And no time to read them: the rows are the same."""
    attacked, twice = step(passes=Passes(accumulated=2, computed=2)), step(gradient_accumulation_steps=2)
    assert attacked.compute == twice.compute
    assert attacked.data_parallel == twice.data_parallel
    assert step(passes=Passes(copies=2)).compute == step(micro_batch_size=16).compute
