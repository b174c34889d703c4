"""The parameter table is what the module has, for every family."""

import random

import pytest
import torch

from megatrain.model.architecture import ModelSection, parameter_table, row_of, rows
from megatrain.model.build import build_model
from megatrain.model.families.bert.section import BertSection
from megatrain.model.families.gemma3.section import Gemma3Section
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.families.modernbert.section import ModernBertSection
from megatrain.model.family import FAMILIES
from megatrain.model.parameter_row import ONES, ZEROS, Kind


def a_llama(chance: random.Random) -> LlamaSection:
    kv, group, size = chance.choice([1, 2, 3]), chance.choice([1, 2, 4]), chance.choice([2, 6, 8])
    return LlamaSection(
        num_hidden_layers=chance.choice([1, 3]),
        hidden_size=kv * group * size + chance.choice([0, 8]),
        num_attention_heads=kv * group,
        num_key_value_heads=kv,
        head_dim=size,
        intermediate_size=chance.choice([5, 16]),
        vocab_size=chance.choice([7, 64]),
        tie_word_embeddings=chance.random() < 0.5,
        attention_bias=chance.random() < 0.5,
        qk_norm=chance.random() < 0.5,
    )


def a_gpt(chance: random.Random) -> GPTSection:
    heads = chance.choice([1, 2, 3])
    return GPTSection(
        num_hidden_layers=chance.choice([1, 3]),
        hidden_size=heads * chance.choice([2, 8]),
        num_attention_heads=heads,
        intermediate_size=chance.choice([None, 5]),
        vocab_size=chance.choice([7, 64]),
        max_position_embeddings=chance.choice([9, 32]),
        tie_word_embeddings=chance.random() < 0.5,
    )


def a_bert(chance: random.Random) -> BertSection:
    heads = chance.choice([1, 2, 3])
    return BertSection(
        num_hidden_layers=chance.choice([1, 3]),
        hidden_size=heads * chance.choice([2, 8]),
        num_attention_heads=heads,
        intermediate_size=chance.choice([None, 5]),
        vocab_size=chance.choice([7, 64]),
        max_position_embeddings=chance.choice([9, 32]),
        position_offset=chance.choice([0, 2]),
        type_vocab_size=chance.choice([1, 2]),
    )


def a_modernbert(chance: random.Random) -> ModernBertSection:
    heads = chance.choice([1, 2, 3])
    return ModernBertSection(
        num_hidden_layers=chance.choice([1, 4]),
        hidden_size=heads * chance.choice([2, 8]),
        num_attention_heads=heads,
        intermediate_size=chance.choice([5, 16]),
        vocab_size=chance.choice([7, 64]),
    )


def a_gemma3(chance: random.Random) -> Gemma3Section:
    kv = chance.choice([1, 2])
    return Gemma3Section(
        num_hidden_layers=chance.choice([1, 7]),
        hidden_size=chance.choice([16, 24]),
        num_attention_heads=kv * chance.choice([1, 2]),
        num_key_value_heads=kv,
        head_dim=chance.choice([2, 8]),
        intermediate_size=chance.choice([5, 16]),
        vocab_size=chance.choice([7, 64]),
    )


RANDOM = {"bert": a_bert, "gemma3": a_gemma3, "gpt": a_gpt, "llama": a_llama, "modernbert": a_modernbert}


def test_every_family_is_held_to_its_table() -> None:
    assert set(FAMILIES.names()) - {"transformers"} == set(RANDOM)  # test_transformers.py


@pytest.mark.parametrize("num_labels", [None, 3, 500])
@pytest.mark.parametrize("family", RANDOM)
@pytest.mark.parametrize("seed", range(8))
def test_the_table_is_what_the_module_has(family, seed, num_labels) -> None:
    section: ModelSection = RANDOM[family](random.Random(seed)).model_copy(update={"num_labels": num_labels})
    with torch.device("meta"):
        parameters = {name: tuple(p.shape) for name, p in build_model(section).named_parameters()}
    table = {row.name: row for row in parameter_table(section)}
    assert {name: row.shape for name, row in table.items()} == parameters
    assert sum(row.count for row in rows(section)) == len(parameters)
    assert section.parameters == sum(torch.Size(shape).numel() for shape in parameters.values())
    for name, row in table.items():
        assert row_of(section, name) == row
        assert row.theirs is None or "{" not in row.theirs.name
        assert row.split is None or row.split < len(row.shape)
        assert row.split is None or not row.partial_gradient


@pytest.mark.parametrize("family", RANDOM)
def test_a_class_head_is_padded_for_all_ranks_and_tied_to_nothing(family) -> None:
    section: ModelSection = RANDOM[family](random.Random(0)).model_copy(update={"num_labels": 3})
    row = row_of(section, "head.weight")
    assert (row.shape, row.split, row.kind) == ((192, section.hidden_size), 0, Kind.HEAD)
    assert row.theirs is not None
    assert row.theirs.whole(row.shape) == (3, section.hidden_size)
    assert not section.ties_head
    matrices = [row for row in parameter_table(section) if len(row.shape) == 2 and row.kind is not Kind.EMBEDDING]
    assert section.matmul_parameters == sum(row.elements for row in matrices)
    assert section.model_copy(update={"num_labels": 193}).head_rows == 384


def test_biases_and_norms_of_heads() -> None:
    llama = LlamaSection(
        num_hidden_layers=2, hidden_size=24, num_attention_heads=6, num_key_value_heads=2, head_dim=8,
        intermediate_size=40, vocab_size=64,
    )  # fmt: skip
    more = llama.model_copy(update={"attention_bias": True, "qk_norm": True})
    plain = set(parameter_table(llama))
    added = {row.name: row for row in parameter_table(more) if row not in plain}
    assert plain < set(parameter_table(more))
    assert len(added) == 2 * 5
    bias, norm = (added[f"blocks.1.attention.{name}"] for name in ("key.bias", "key_norm.weight"))
    assert (bias.shape, bias.kind, bias.init, bias.split) == ((16,), Kind.BIAS, ZEROS, 0)
    assert bias.huggingface == "model.layers.1.self_attn.k_proj.bias"
    assert (norm.shape, norm.kind, norm.init, norm.split) == ((8,), Kind.NORM, ONES, None)
    assert norm.huggingface == "model.layers.1.self_attn.k_norm.weight"
    assert not any(row.decay for row in added.values())
    assert [row.name for row in parameter_table(more) if row.partial_gradient] == [
        f"blocks.{layer}.attention.{name}_norm.weight" for layer in (0, 1) for name in ("query", "key")
    ]


@pytest.mark.parametrize(
    ("section", "mlp", "outside"),
    [
        (a_llama(random.Random(1)), ["mlp.gate", "mlp.up", "mlp.down"], {"embedding", "head"}),
        (a_gpt(random.Random(1)), ["mlp.up", "mlp.down"], {"embedding", "position_embedding", "head"}),
        (a_modernbert(random.Random(1)), ["mlp.gate", "mlp.up", "mlp.down"], {"embedding", "transform.dense"}),
    ],
    ids=["llama", "gpt", "modernbert"],
)
def test_hidden_matrices_are_those_inside_of_layers_one_by_one(section, mlp, outside) -> None:
    hidden = [row.name for row in parameter_table(section) if row.is_hidden_matrix]
    attention = [f"attention.{name}" for name in ("query", "key", "value", "output")]
    assert hidden == [
        f"blocks.{layer}.{name}.weight" for layer in range(section.num_hidden_layers) for name in attention + mlp
    ]
    others = {row.name for row in parameter_table(section) if not row.is_hidden_matrix and len(row.shape) == 2}
    assert others <= {f"{name}.weight" for name in outside}


def test_a_weight_that_the_model_has_not() -> None:
    section = a_llama(random.Random(0))
    for name in ("blocks.9.mlp.up.weight", "blocks.0.mlp.up.bias", "nothing"):
        with pytest.raises(KeyError):
            row_of(section, name)


def test_flops_and_parameters_are_those_of_the_published_formulas() -> None:
    llama = LlamaSection(
        num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, vocab_size=128256,
    )  # fmt: skip
    assert llama.parameters == 8_030_261_248  # Llama 3 8B
    attention, mlp = 2 * 4096 * 128 * (32 + 8), 3 * 4096 * 14336
    matmul = 32 * (attention + mlp) + 128256 * 4096
    assert llama.matmul_parameters == matmul
    assert llama.flops_per_token(8192) == 6.0 * matmul + 6.0 * 32 * 4096 * 8192
    tied = llama.model_copy(update={"tie_word_embeddings": True})
    assert (tied.parameters, tied.matmul_parameters) == (llama.parameters - 128256 * 4096, matmul)
