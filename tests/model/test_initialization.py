import math

import pytest
import torch

from megatrain.model.initialization import initial_weight, materialize
from megatrain.model.transformer import Transformer

SHAPE = torch.Size((400, 300))


def test_a_function_of_seed_and_name_alone(model_section) -> None:
    section = model_section()
    torch.manual_seed(1)
    first = initial_weight("head.weight", SHAPE, section, 5)
    torch.manual_seed(2)
    assert torch.equal(initial_weight("head.weight", SHAPE, section, 5), first)
    assert not torch.equal(initial_weight("head.weight", SHAPE, section, 6), first)
    assert not torch.equal(initial_weight("embedding.weight", SHAPE, section, 5), first)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("blocks.0.attention.query.weight", 0.3),
        ("blocks.0.attention.output.weight", 0.3 / math.sqrt(2 * 2)),
        ("blocks.1.mlp.down.weight", 0.3 / math.sqrt(2 * 2)),
        ("embedding.weight", 0.3),
    ],
)
def test_standard_deviations(model_section, name, deviation) -> None:
    weight = initial_weight(name, SHAPE, model_section(), 0)
    assert weight.dtype == torch.float32
    assert weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert weight.mean().abs().item() < 0.03 * deviation


def test_norm_weights_are_one(model_section) -> None:
    assert torch.equal(initial_weight("norm.weight", torch.Size((24,)), model_section(), 0), torch.ones(24))


def test_materialize_keeps_ties_marks_and_frozen_parameters(model_section) -> None:
    with torch.device("meta"):
        model = Transformer(model_section(tie_word_embeddings=True))
    model.norm.weight.requires_grad_(False)
    model.head.weight.mark = "kept"
    names = []

    def initial(name, parameter):
        names.append(name)
        return torch.full(parameter.shape, float(len(names)))

    materialize(model, initial, dtype=torch.bfloat16)

    assert names == [name for name, _ in model.named_parameters()]
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.mark == "kept"
    assert not model.norm.weight.requires_grad
    assert all(p.device.type == "cpu" and p.dtype == torch.bfloat16 for p in model.parameters())
    assert model.embedding.weight.unique().tolist() == [1.0]
