"""What Muon costs: state by the parameter table, products and messages by the plan that ranks make."""

import pytest

from launcher.planning.cost import estimate_step
from launcher.planning.hardware import Link, load_hardware
from launcher.planning.layout import Layout
from launcher.planning.matrices import (
    ROUND_ELEMENTS,
    buffer_bytes,
    checkpoint_bytes,
    hidden_elements,
    seconds,
    sent_bytes,
    state_bytes,
)
from launcher.planning.memory import estimate_memory
from launcher.planning.zero import local_parameters, zero_bytes
from megatrain.model.architecture import parameter_table
from megatrain.optim.adamw import AdamWSection
from megatrain.optim.lion import LionSection
from megatrain.optim.muon import MuonSection
from megatrain.parallel import matrix_exchange
from megatrain.parallel.matrix_plan import Piece, plan_rounds
from megatrain.parallel.tensor_parallel import Shard
from tests.launcher.shapes import MODEL, layout

MUON = MuonSection()
HIDDEN = 4 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256)  # query and output, key and value, the MLP
TABLES, NORMS = 2 * 1024 * 256, 9 * 256
LARGE = MODEL.model_copy(
    update={
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
)


def test_one_state_for_hidden_matrices_and_two_for_the_rest():
    assert hidden_elements(MODEL) == HIDDEN == MODEL.parameters - TABLES - NORMS
    for tensor in (1, 2):
        muon, adamw = (
            zero_bytes(MODEL, layout(zero_stage=0, tensor_parallel=tensor, optimizer=one), "fp32").optimizer
            for one in (MUON, AdamWSection())
        )
        assert muon == pytest.approx(4 * HIDDEN / tensor + 8 * (TABLES / tensor + NORMS), rel=1e-12)
        assert adamw == pytest.approx(8 * ((HIDDEN + TABLES) / tensor + NORMS), rel=1e-12)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_counts_it(stage):
    muon, adamw = (zero_bytes(MODEL, layout(zero_stage=stage, optimizer=one), "bf16") for one in (MUON, AdamWSection()))
    owners = 8 if stage else 1
    assert adamw.optimizer - muon.optimizer == pytest.approx(4 * HIDDEN / owners)
    assert state_bytes(MODEL, layout(optimizer=LionSection())) == 4


def test_a_checkpoint_holds_it():
    assert checkpoint_bytes(MODEL, AdamWSection()) == 12 * MODEL.parameters
    assert checkpoint_bytes(MODEL, MUON) == 8 * HIDDEN + 12 * (TABLES + NORMS)


def test_buffers_do_not_grow_with_the_model():
    """Under ZeRO no more than a few rounds' numbers; and they count in the step only."""
    assert ROUND_ELEMENTS == matrix_exchange.ROUND_ELEMENTS
    deep = LARGE.model_copy(update={"num_hidden_layers": 64})
    for stage in (1, 2, 3):
        large, twice = (buffer_bytes(one, layout(zero_stage=stage, optimizer=MUON), "cuda") for one in (LARGE, deep))
        assert large == twice < 2 * 9 * ROUND_ELEMENTS
    assert buffer_bytes(LARGE, layout(), "cuda") == 0, "AdamW has none"
    hardware = load_hardware("h100-sxm", 8)
    one, other = (
        estimate_memory(
            MODEL,
            layout(micro_batch_size=1, zero_stage=0, optimizer=section),
            sequence_length=16,
            precision="bf16",
            hardware=hardware,
        )
        for section in (MUON, AdamWSection())
    )
    assert one.peak == other.peak == "step"
    assert one.buffers - other.buffers == round(buffer_bytes(MODEL, layout(zero_stage=0, optimizer=MUON), "cuda"))


def test_products_are_shared_by_all_ranks_up_to_one_matrix():
    hardware, free = load_hardware("h100-sxm", 8), Link(bandwidth=1e9, latency=1e-6)
    alone, eight, many = (
        seconds(LARGE, layout(data_parallel=ranks, optimizer=MUON), hardware, free) for ranks in (1, 8, 4096)
    )
    assert alone == pytest.approx(8 * eight, rel=1e-3)
    flops = 5 * (4 * 4096**2 * 14336 + 2 * 4096**3)
    at_best = flops / (hardware.tflops("bf16") * 1e12 * hardware.training_efficiency)
    assert at_best < many < 1.2 * at_best, "of one matrix of an MLP"
    assert seconds(LARGE, layout(), hardware, free) == 0


def test_a_step_is_longer_by_it():
    def step(section):
        return estimate_step(
            LARGE,
            layout(optimizer=section),
            sequence_length=4096,
            precision="bf16",
            ranks_per_node=8,
            hardware=load_hardware("h100-sxm", 8),
        )

    muon, adamw = step(MUON), step(AdamWSection())
    assert muon.optimizer > adamw.optimizer
    assert muon.compute == adamw.compute
    assert muon.total < 1.2 * adamw.total


def pieces(one: Layout) -> list[list[Piece]]:
    """Of each rank: every matrix in equal parts, as under ZeRO-3, or slices on every replica."""
    ranks = []
    for rank in range(one.world_size):
        own = []
        for row in parameter_table(MODEL):
            if row.is_hidden_matrix:
                assert row.split is not None
                shape = tuple(n // one.tensor_parallel if dim == row.split else n for dim, n in enumerate(row.shape))
                shard = Shard(row.split, rank % one.tensor_parallel, one.tensor_parallel)
                size = int(row.local_elements(one.tensor_parallel))
                part = size // one.replicas if one.zero_stage else size
                start = rank // one.tensor_parallel * part if one.zero_stage else 0
                own.append(Piece(row.name, shape, shard, start, part, 0))
        ranks.append(own)
    return ranks


@pytest.mark.parametrize(
    "changes", [{"zero_stage": 3}, {"zero_stage": 3, "tensor_parallel": 2}, {"zero_stage": 0, "tensor_parallel": 2}]
)
def test_ranks_send_what_is_planned(changes):
    one = layout(data_parallel=4, optimizer=MUON, **changes)
    given, sent = pieces(one), 0
    assert local_parameters(MODEL, one.tensor_parallel) > sum(piece.numel for piece in given[0])
    for rank in range(one.world_size):
        for this in plan_rounds(given, rank, limit=ROUND_ELEMENTS):
            for sizes in (this.given_sizes, this.answer_sizes):
                sent += sum(size for to, size in enumerate(sizes) if to != rank)
    assert 2 * sent / one.world_size == pytest.approx(sent_bytes(MODEL, one, "cuda"), rel=0.01)
