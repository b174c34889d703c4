"""What a model costs that is trained in part."""

import pytest

from launcher.planning.activations import activation_bytes
from launcher.planning.cost import block_time
from launcher.planning.data_parallel import data_parallel_bytes
from launcher.planning.hardware import load_hardware
from launcher.planning.layout import Layout
from launcher.planning.matrices import checkpoint_bytes
from launcher.planning.trained import trained_parameters
from launcher.planning.zero import local_parameters, zero_bytes
from megatrain.adapters.lora import LoraSection
from megatrain.model.families.llama.section import LlamaSection
from megatrain.optim.adamw import AdamWSection

MODEL = LlamaSection(
    num_hidden_layers=8, hidden_size=1024, num_attention_heads=16, num_key_value_heads=8, intermediate_size=2816,
    vocab_size=32000,
)  # fmt: skip
ADAPTED = MODEL.model_copy(update={"adapter": LoraSection(rank=16)})
TOP = MODEL.model_copy(update={"train_layers": 2})
HEAD = MODEL.model_copy(update={"train_layers": 0})


def layout(stage: int) -> Layout:
    return Layout(
        tensor_parallel=2,
        data_parallel=4,
        zero_stage=stage,
        sequence_parallel=True,
        micro_batch_size=2,
        gradient_accumulation_steps=1,
        activation_checkpointing="none",
    )


@pytest.mark.parametrize("model", [ADAPTED, TOP, HEAD], ids=["adapter", "top layers", "head"])
def test_a_checkpoint_holds_what_is_trained(model: LlamaSection) -> None:
    assert (
        checkpoint_bytes(model, AdamWSection())
        == 12 * model.trained_parameters
        < checkpoint_bytes(MODEL, AdamWSection())
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("model", [ADAPTED, TOP, HEAD], ids=["adapter", "top layers", "head"])
def test_frozen_weights_are_there_in_bf16_alone(model: LlamaSection, stage: int) -> None:
    part, whole = (zero_bytes(one, layout(stage), "bf16") for one in (model, MODEL))
    share = 4 if stage == 3 else 1
    assert part.parameters == pytest.approx(2 * local_parameters(model, 2) / share)
    ratio = trained_parameters(model, 2) / local_parameters(MODEL, 2)
    assert part.optimizer == pytest.approx(whole.optimizer * ratio, rel=0.2)
    assert part.gradients == pytest.approx(whole.gradients * ratio, rel=0.2)
    sent = [data_parallel_bytes(one, layout(stage), "bf16") for one in (model, MODEL)]
    assert sent[0].reduce == pytest.approx(sent[1].reduce * ratio, rel=0.2)
    gathered = local_parameters(model, 2) / local_parameters(MODEL, 2) if stage == 3 else ratio
    assert sent[0].gather == pytest.approx(sent[1].gather * gathered, rel=0.2)


def test_a_backward_pass_makes_half_of_the_products() -> None:
    hardware = load_hardware("h100-sxm", 8)
    whole, part = (block_time(one, layout(1), 4096, "bf16", hardware, True) for one in (MODEL, ADAPTED))
    assert part.frozen_matmuls == pytest.approx(whole.matmuls)
    assert whole.matmuls < part.matmuls < 1.5 * whole.matmuls
    assert part.last_matmul == whole.last_matmul


def test_layers_below_the_top_ones_keep_nothing() -> None:
    kept = [
        activation_bytes(one, layout(1), sequence_length=512, precision="bf16", device="cuda", compiled=True).kept
        for one in (MODEL, TOP)
    ]
    assert kept[1] == pytest.approx(kept[0] / 4, rel=0.1)
