"""The planner's bytes against those of real ranks, of models that are trained in part."""

import pytest

from launcher.planning.hardware import load_hardware
from launcher.planning.layout import Layout
from launcher.planning.memory import estimate_memory
from megatrain.adapters.dora import DoraSection
from megatrain.adapters.houlsby import HoulsbySection
from megatrain.adapters.lora import LoraSection
from tests.distributed.memory import MODELS, Case, measure
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

PARTS = {
    "lora": {"adapter": LoraSection(rank=8)},
    "dora": {"adapter": DoraSection(rank=8)},
    "houlsby": {"adapter": HoulsbySection(bottleneck=32)},
    "top": {"train_layers": 2},
}
CASES = [
    ("lora", 0, "fp32", "none", 1),
    ("lora", 1, "bf16", "none", 1),
    ("lora", 2, "bf16", "selective", 2),
    ("lora", 3, "bf16", "full", 1),
    ("dora", 1, "bf16", "none", 1),
    ("dora", 3, "fp32", "none", 1),
    ("dora", 2, "bf16", "selective", 2),
    ("houlsby", 1, "bf16", "none", 1),
    ("houlsby", 3, "fp32", "selective", 1),
    ("houlsby", 2, "bf16", "full", 2),
    ("top", 0, "bf16", "none", 1),
    ("top", 1, "fp32", "selective", 1),
    ("top", 2, "fp32", "none", 1),
    ("top", 3, "bf16", "none", 1),
]


@pytest.mark.full
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_only_what_is_trained_is_offloaded(ranks: RankPool, stage: int) -> None:
    """Host and device are the same memory on these ranks."""
    layout = Layout(
        tensor_parallel=1,
        data_parallel=2,
        zero_stage=stage,
        sequence_parallel=False,
        micro_batch_size=4,
        gradient_accumulation_steps=1,
        activation_checkpointing="none",
        offload_optimizer="cpu",
    )
    model = MODELS["narrow"].model_copy(update=PARTS["lora"])
    measured = ranks.run(
        2, measure, Case(name="lora", model=model, layout=layout, sequence_length=256, precision="bf16")
    )
    found = estimate_memory(model, layout, sequence_length=256, precision="bf16", hardware=load_hardware("cpu", 1))
    print(f"lora-{stage}: {found.tensors:,} + {found.host:,} of {measured[0].peak:,}")
    assert found.host < 25 * model.trained_parameters
    assert found.tensors + found.host == pytest.approx(measured[0].peak, rel=0.15)


@pytest.mark.parametrize(
    ("part", "stage", "precision", "recompute", "tensor"),
    [pytest.param(*case, marks=() if case[:2] in (("lora", 1),) else pytest.mark.full) for case in CASES],
)
def test_predicted_bytes_are_there(
    ranks: RankPool, part: str, stage: int, precision: str, recompute: str, tensor: int
) -> None:
    layout = Layout(
        tensor_parallel=tensor,
        data_parallel=2 // tensor,
        zero_stage=stage,
        sequence_parallel=False,
        micro_batch_size=4,
        gradient_accumulation_steps=1,
        activation_checkpointing=recompute,
    )
    model = MODELS["narrow"].model_copy(update=PARTS[part])
    case = Case(name=part, model=model, layout=layout, sequence_length=256, precision=precision)
    measured = ranks.run(2, measure, case)[0]
    predicted = estimate_memory(
        model, layout, sequence_length=256, precision=precision, hardware=load_hardware("cpu", 1)
    )
    print(f"{part}-{stage}: {predicted.tensors:,} ({predicted.peak}) of {measured.peak:,} ({measured.moment})")
    assert predicted.parameters == pytest.approx(measured.parameters, rel=0.01)
    assert predicted.tensors == pytest.approx(measured.peak, rel=0.15)
