"""What DeepSpeed holds: the literature's bytes per parameter, and what is there only for a part of a step."""

import pytest

from launcher.planning.zero import (
    LIVE_PARAMETERS,
    REDUCE_BUCKET,
    block_parameters,
    live_parameters,
    local_parameters,
    prefetch_bucket,
    reduce_bucket,
    reuse_distance,
    zero_bytes,
)
from tests.launcher.shapes import MODEL, layout


@pytest.mark.parametrize(
    ("precision", "stage", "bytes_a_parameter"),
    [  # parameters + gradients + optimizer over 8 ranks (ZeRO, table 1), with gradients summed in fp32
        ("bf16", 0, 2 + 2 + 12),
        ("bf16", 1, 2 + 4 + 12 / 8),  # a gradient is added to the sums as soon as it is made
        ("bf16", 2, 2 + 4 / 8 + 12 / 8),
        ("bf16", 3, (2 + 4 + 12) / 8),
        ("fp32", 0, 4 + 4 + 8),
        ("fp32", 1, 4 + 4 + 12 / 8),
        ("fp32", 2, 4 + 12 / 8),  # the partition's gradients are in `late_in_backward`
        ("fp32", 3, (4 + 4 + 12) / 8),
    ],
)
def test_state_of_a_parameter(precision, stage, bytes_a_parameter):
    zero = zero_bytes(MODEL, layout(zero_stage=stage), precision)
    state = zero.parameters + zero.gradients + zero.optimizer + zero.made
    assert state == pytest.approx(MODEL.parameters * bytes_a_parameter, rel=1e-6)


def test_tensor_parallelism_splits_matrices_and_keeps_norms():
    norms = (2 * 4 + 1) * 256
    assert local_parameters(MODEL, 1) == MODEL.parameters
    assert local_parameters(MODEL, 4) == (MODEL.parameters - norms) / 4 + norms


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_accumulation_holds_gradients_from_one_micro_batch_to_the_next(stage, precision):
    one, two = (zero_bytes(MODEL, layout(zero_stage=stage, gradient_accumulation_steps=n), precision) for n in (1, 2))
    assert one.held == 0
    assert two.held + two.gradients > 0


LARGE = MODEL.model_copy(  # 70B: blocks of 856M
    update={
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    }
)


def test_buckets_are_deepspeeds_for_a_large_model_and_less_for_a_small_one():
    assert reduce_bucket(LARGE, 1, 2) == REDUCE_BUCKET
    assert reduce_bucket(MODEL, 1, 1) == round(MODEL.parameters / 4)
    wide = MODEL.model_copy(update={"num_hidden_layers": 1, "vocab_size": 32768})
    assert reduce_bucket(wide, 1, 1) == 32768 * 256, "no gradient is larger than the bucket"


@pytest.mark.parametrize(("model", "tensor"), [(LARGE, 1), (LARGE, 8), (MODEL, 1)])
def test_zero_3_gathers_and_reduces_a_block_at_a_time(model, tensor):
    block = block_parameters(model, tensor)
    assert prefetch_bucket(model, tensor) == round(1.1 * block), "all of the next block"
    assert reduce_bucket(model, tensor, 3) >= round(block)
    assert live_parameters(model, tensor) >= max(LIVE_PARAMETERS, round(3 * block))


def test_zero_3_keeps_of_a_large_model_the_last_block_for_its_backward_pass():
    assert reuse_distance(LARGE, 1) == round(block_parameters(LARGE, 1))
    assert reuse_distance(MODEL, 1) == LIVE_PARAMETERS, "all of a small one"


def test_zero_3_keeps_the_whole_model_gathered_while_it_is_small():
    zero = zero_bytes(MODEL, layout(zero_stage=3), "bf16")
    assert zero.gathered == 2 * MODEL.parameters
    assert zero_bytes(MODEL, layout(zero_stage=3, data_parallel=1), "bf16").gathered == 0
