"""Bytes a rank: exact where the formula is the literature's, and monotone where it is an estimate."""

import pytest

from launcher.hardware import load_hardware
from launcher.layout import Layout
from launcher.memory import estimate_memory, local_parameters
from megatrain.config import ModelSection

MODEL = ModelSection(
    num_hidden_layers=4,
    hidden_size=256,
    num_attention_heads=8,
    num_key_value_heads=4,
    intermediate_size=512,
    vocab_size=1024,
)
BASE = {
    "tensor_parallel": 1,
    "data_parallel": 8,
    "zero_stage": 1,
    "sequence_parallel": False,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "activation_checkpointing": "none",
}


def memory(precision="bf16", length=1024, **changes):
    layout = Layout(**(BASE | changes))
    hardware = load_hardware("h100-sxm", 8)
    return estimate_memory(MODEL, layout, sequence_length=length, precision=precision, hardware=hardware)


@pytest.mark.parametrize(
    ("precision", "stage", "bytes_a_parameter"),
    [  # parameters + gradients + optimizer, over 8 ranks (ZeRO, table 1, with gradients summed in fp32)
        ("bf16", 0, 2 + 2 + 12),
        ("bf16", 1, 2 + 4 + 12 / 8),
        ("bf16", 2, 2 + 4 / 8 + 12 / 8),
        ("bf16", 3, (2 + 4 + 12) / 8),
        ("fp32", 0, 4 + 4 + 8),
        ("fp32", 1, 4 + 4 + 12 / 8),
        ("fp32", 3, (4 + 4 + 12) / 8),
    ],
)
def test_state_of_a_parameter(precision, stage, bytes_a_parameter):
    found = memory(precision, zero_stage=stage)
    state = found.parameters + found.gradients + found.optimizer
    assert state == pytest.approx(MODEL.parameters * bytes_a_parameter, rel=1e-6)


def test_tensor_parallelism_splits_matrices_and_keeps_norms():
    norms = (2 * 4 + 1) * 256
    assert local_parameters(MODEL, 1) == MODEL.parameters
    assert local_parameters(MODEL, 4) == (MODEL.parameters - norms) / 4 + norms


def test_activations_of_a_layer_are_the_literatures():
    """sb[h(12 + 4g) + 6f] bytes in bf16, g key-value heads over heads: one more layer adds just that."""
    deeper = MODEL.model_copy(update={"num_hidden_layers": 5})
    hardware = load_hardware("h100-sxm", 8)
    arguments = {"sequence_length": 1024, "precision": "bf16", "hardware": hardware}
    four, five = (estimate_memory(model, Layout(**BASE), **arguments) for model in (MODEL, deeper))
    h, f, g = 256, 512, 4 / 8
    assert five.activations - four.activations == pytest.approx(4 * 1024 * (h * (12 + 4 * g) + 6 * f), abs=1)


def test_each_way_to_save_memory_saves_memory():
    modes = [memory(activation_checkpointing=mode).activations for mode in ("none", "selective", "full")]
    assert modes == sorted(modes, reverse=True)
    assert memory(tensor_parallel=2).total < memory().total
    assert memory(tensor_parallel=2, sequence_parallel=True).activations < memory(tensor_parallel=2).activations
    assert memory(zero_stage=1).optimizer == memory(zero_stage=0).optimizer / 8
    assert memory(zero_stage=2).gradients == memory(zero_stage=1).gradients / 8
    assert memory(zero_stage=3).parameters == memory(zero_stage=2).parameters / 8


def test_more_tokens_take_more():
    assert memory(micro_batch_size=8).activations > 1.8 * memory(micro_batch_size=4).activations - 2**24
    assert memory(length=2048).activations == memory(micro_batch_size=8).activations


def test_the_total_is_the_sum_of_the_parts():
    found = memory()
    assert found.total == found.parameters + found.gradients + found.optimizer + found.activations + found.other
    assert found.to_json()["total"] == found.total
