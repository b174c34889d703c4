"""What families' blocks are made of; and the bytes that they keep, against those that tensors of a real one take."""

import pytest
import torch

from launcher.planning.activations import activation_bytes
from launcher.planning.blocks import block_shape
from launcher.planning.cost import block_time
from launcher.planning.hardware import load_hardware
from megatrain.model.architecture import ModelSection
from megatrain.model.build import build_model
from megatrain.model.families.bert.section import BertSection
from megatrain.model.families.gemma3.section import Gemma3Section
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.families.modernbert.section import ModernBertSection
from megatrain.parallel.activation_checkpointing import apply_activation_checkpointing
from megatrain.parallel.activation_offload import offload_block_inputs
from tests.distributed.memory import LiveTensors
from tests.launcher.shapes import layout

SIZES = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "vocab_size": 512}
LOCAL = ("sliding_attention", "full_attention")
MODELS: dict[str, ModelSection] = {
    "llama": LlamaSection(**SIZES, intermediate_size=352, num_key_value_heads=2),
    "qwen3": LlamaSection(**SIZES, intermediate_size=352, num_key_value_heads=2, qk_norm=True),
    "gpt": GPTSection(**SIZES, max_position_embeddings=256),
    "bert": BertSection(**SIZES, max_position_embeddings=256),
    "gemma3": Gemma3Section(
        **SIZES, intermediate_size=352, num_key_value_heads=2, head_dim=48, sliding_window=64, layer_types=LOCAL
    ),
    "modernbert": ModernBertSection(**SIZES, intermediate_size=352, sliding_window=32, layer_types=LOCAL),
}
BATCH, LENGTH = 2, 256
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "norms", "inputs", "outer", "matrices", "rotates"),
    [
        ("llama", 2, 2, 1, 0, True),
        ("qwen3", 2, 2, 1, 0, True),
        ("gpt", 2, 1, 1, 0, False),
        ("bert", 2, 1, 2, 1, False),
        ("gemma3", 4, 2, 1, 0, True),
        ("modernbert", 7 / 4, 2, 3, 1, True),  # its first layer has one norm
    ],
)
def test_a_block_is_read_from_the_table(name, norms, inputs, outer, matrices, rotates) -> None:
    shape = block_shape(MODELS[name])
    assert (shape.norms, shape.mlp_inputs, shape.outer_norms, shape.outer_matrices, shape.rotates) == (
        norms, inputs, outer, matrices, rotates,
    )  # fmt: skip
    with torch.device("meta"):
        assert shape.tensors == len(list(build_model(MODELS[name]).parameters()))


def saved(model: ModelSection, precision: str, recompute: str) -> int:
    """Bytes that a forward pass leaves for the backward pass."""
    module = build_model(model).to(DTYPES[precision])
    apply_activation_checkpointing(module, recompute)
    if recompute == "offload":
        offload_block_inputs(module)
    ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 512
    with LiveTensors() as live:
        before = live.bytes
        loss = module(ids, ids)
        left = live.bytes - before
        del loss
    return left


@pytest.mark.parametrize("recompute", ["none", "selective", "full", "offload"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_what_a_forward_pass_keeps(name, precision, recompute) -> None:
    """What a layer adds, within 1%, and all of it within 8%."""
    model = MODELS[name]
    less = model.model_copy(update={"num_hidden_layers": 2})
    measured = [saved(each, precision, recompute) for each in (less, model)]
    predicted = [
        activation_bytes(
            each,
            layout(micro_batch_size=BATCH, activation_checkpointing=recompute),
            sequence_length=LENGTH,
            precision=precision,
            device="cpu",
            compiled=False,
        )
        for each in (less, model)
    ]
    assert predicted[1].kept - predicted[0].kept == pytest.approx(measured[1] - measured[0], rel=0.01)
    assert predicted[1].kept + predicted[1].head_gradients == pytest.approx(measured[1], rel=0.08)


def test_what_is_not_there_takes_no_time() -> None:
    """An MLP without a gate, and queries that are not rotated."""
    hardware = load_hardware("h100-sxm", 8)
    gated = LlamaSection(**SIZES, intermediate_size=512)
    times = [
        block_time(model, layout(), 1024, "bf16", hardware, compiled)
        for compiled in (True, False)
        for model in (MODELS["gpt"], gated)
    ]
    for plain, llama in (times[:2], times[2:]):
        assert plain.elementwise < llama.elementwise
        assert plain.matmuls < llama.matmuls
