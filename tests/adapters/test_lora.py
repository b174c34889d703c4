"""The rows of a LoRA are what its layers have, and what merging adds is what they compute."""

import math

import pytest
import torch

from megatrain.adapters.lora import LoraSection
from megatrain.adapters.lora.module import change, with_lora
from megatrain.model.architecture import ModelSection, parameter_table, row_of, rows
from megatrain.model.build import build_model
from megatrain.model.families.bert.section import BertSection
from megatrain.model.families.gemma3.section import Gemma3Section
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.families.modernbert.section import ModernBertSection
from megatrain.model.initialization import initial_weight, materialize

SIZES = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 32}
MODELS = {
    "llama": LlamaSection(**SIZES, intermediate_size=24),
    "gpt": GPTSection(**SIZES, max_position_embeddings=16),
    "bert": BertSection(**SIZES, max_position_embeddings=16),
    "modernbert": ModernBertSection(**SIZES, intermediate_size=24),
    "gemma3": Gemma3Section(**SIZES, intermediate_size=24, head_dim=8),
}


def with_adapter(model: ModelSection, **fields: object) -> ModelSection:
    return model.model_copy(update={"adapter": LoraSection(rank=4, **fields)})


@pytest.mark.parametrize("labels", [None, 3])
@pytest.mark.parametrize("part", ["adapter", "train_layers"])
@pytest.mark.parametrize("family", MODELS)
def test_the_table_is_what_the_module_has(family: str, part: str, labels: int | None) -> None:
    model = MODELS[family].model_copy(update={"num_labels": labels})
    value = LoraSection(rank=4) if part == "adapter" else 1
    section = model.model_copy(update={part: value})
    with torch.device("meta"):
        module = build_model(section)
    table = {row.name: row for row in parameter_table(section)}
    parameters = dict(module.named_parameters())
    assert parameters.keys() == table.keys()
    for name, parameter in parameters.items():
        assert tuple(parameter.shape) == table[name].shape == row_of(section, name).shape
        assert parameter.requires_grad == table[name].trained, name
    trained = [row for row in table.values() if row.trained]
    assert sum(row.elements for row in trained) == section.trained_parameters < section.parameters
    if labels is not None:
        assert table["head.weight"].trained
    assert [row.trained for row in parameter_table(section.merged)] == [True] * len(list(parameter_table(model)))


def test_only_the_top_layers_and_what_is_behind_them_are_trained() -> None:
    section = MODELS["llama"].model_copy(update={"train_layers": 2})
    frozen = {row.name.split(".")[0] for row in parameter_table(section) if not row.trained}
    layers = {row.layers[0] for row in parameter_table(section) if row.trained and row.layers is not None}
    assert layers == {1, 2}
    assert frozen == {"embedding", "blocks"}
    tied = section.model_copy(update={"tie_word_embeddings": True})
    assert not row_of(tied, "embedding.weight").trained
    head = section.model_copy(update={"train_layers": 0})
    assert {row.name for row in parameter_table(head) if row.trained} == {"norm.weight", "head.weight"}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("all-linear",), {"query", "key", "value", "output", "gate", "up", "down"}),
        (("attention",), {"query", "key", "value", "output"}),
        (("mlp",), {"gate", "up", "down"}),
        (("q_proj", "attention.value", "down"), {"query", "value", "down"}),
    ],
)
def test_targets(targets: tuple[str, ...], expected: set[str]) -> None:
    section = with_adapter(MODELS["llama"], target_modules=targets)
    assert {row.name.split(".")[-2] for row in rows(section) if row.of_adapter} == expected


def test_it_begins_as_pefts_does_and_as_the_base() -> None:
    section = with_adapter(MODELS["llama"])
    a = initial_weight(row_of(section, "blocks.1.mlp.down.lora_a"), 7)
    bound = 1 / math.sqrt(24)
    assert 0.8 * bound < float(a.abs().max()) <= bound
    assert torch.equal(a, initial_weight(row_of(section, "blocks.1.mlp.down.lora_a"), 7))
    assert not torch.equal(a, initial_weight(row_of(section, "blocks.2.mlp.down.lora_a"), 7))
    outputs = []
    for one in (section, section.merged):
        with torch.device("meta"):
            model = build_model(one)
        materialize(model, lambda name, _, one=one: initial_weight(row_of(one, name), 7))
        outputs.append(model(torch.arange(8)[None]))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("stabilized", [False, True])
def test_merging_adds_what_the_layer_computes(stabilized: bool) -> None:
    section = LoraSection(rank=4, alpha=6.0, rank_stabilized=stabilized)
    assert section.scale == (3.0 if stabilized else 1.5)
    plain = torch.nn.Linear(10, 7)
    layer = with_lora(section, plain)
    tensors = {"lora_a": torch.randn(4, 10), "lora_b": torch.randn(7, 4)}
    layer.lora_a, layer.lora_b = (torch.nn.Parameter(tensors[name]) for name in ("lora_a", "lora_b"))
    whole = change(section, tensors, (0, 0), (7, 10))
    x = torch.randn(5, 10)
    merged = torch.nn.functional.linear(x, plain.weight + whole, plain.bias)
    assert torch.allclose(layer(x), merged, atol=1e-5)
    assert torch.equal(change(section, tensors, (2, 3), (4, 5)), whole[2:6, 3:8])


def test_a_frozen_weight_costs_four_operations_a_parameter_and_those_below_two() -> None:
    model = MODELS["llama"]
    attention = model.flops_per_token(16) - 6 * model.matmul_parameters
    adapted = with_adapter(model)
    own = adapted.trained_parameters
    assert adapted.flops_per_token(16) == 4 * model.matmul_parameters + 6 * own + attention
    top = model.model_copy(update={"train_layers": 1})
    block, head = (model.matmul_parameters - 32 * 16) / 3, 32 * 16
    assert top.flops_per_token(16) == 2 * 2 * block + 6 * (block + head) + attention * (2 / 3 * 1 / 3 + 1 / 3)
