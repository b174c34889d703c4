"""The weights of a Llama, and where its tensor-parallel regions begin and end (arXiv 1909.08053)."""

import math
from collections.abc import Iterator
from typing import Literal

from megatrain.model.class_table import class_rows
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.family import Divisible, Region
from megatrain.model.parameter_row import ONES, ZEROS, Kind, Normal, ParameterRow

REGIONS = {
    r"embedding": Region(enter=False, leave=True),
    r"blocks\.\d+\.attention": Region(enter=True, leave=True),
    r"blocks\.\d+\.mlp": Region(enter=True, leave=True),
    r"head": Region(enter=True, leave=False),  # the loss leaves reduced; see kernels/cross_entropy.py
}
_Dim = Literal[0, 1]  # of an [out, in] weight
_COLUMN: _Dim = 0
_ROW: _Dim = 1
_VOCABULARY: _Dim = 0


def rows(section: LlamaSection) -> tuple[ParameterRow, ...]:
    """Matrices are normal with standard deviation initializer_range; those that write into the residual stream are
    divided by √(2L), so that its variance does not grow with depth (GPT-2, section 2.3). Norm weights are one, biases
    zero."""
    width, inner = section.hidden_size, section.mlp_width
    queries, keys = (heads * section.head_size for heads in (section.attention_heads, section.key_value_heads))
    layers = range(section.num_hidden_layers)
    inside = Normal(section.initializer_range)
    into_stream = Normal(section.initializer_range / math.sqrt(2 * section.num_hidden_layers))

    def matrix(name: str, theirs: str, out: int, into: int, split: _Dim, kind: Kind) -> ParameterRow:
        return ParameterRow(
            name=f"blocks.{{}}.{name}.weight",
            shape=(out, into),
            kind=kind,
            init=into_stream if split == _ROW else inside,
            split=split,
            huggingface=f"model.layers.{{}}.{theirs}.weight",
            layers=layers,
        )

    def norm(name: str, theirs: str, of: range | None) -> ParameterRow:
        return ParameterRow(
            name=f"{name}.weight", shape=(width,), kind=Kind.NORM, init=ONES, decay=False, huggingface=theirs, layers=of
        )

    return (
        ParameterRow(
            name="embedding.weight",
            shape=(section.padded_vocab_size, width),
            kind=Kind.EMBEDDING,
            init=inside,
            split=_VOCABULARY,
            huggingface="model.embed_tokens.weight",
        ),
        norm("blocks.{}.attention_norm", "model.layers.{}.input_layernorm.weight", layers),
        matrix("attention.query", "self_attn.q_proj", queries, width, _COLUMN, Kind.ATTENTION),
        matrix("attention.key", "self_attn.k_proj", keys, width, _COLUMN, Kind.ATTENTION),
        matrix("attention.value", "self_attn.v_proj", keys, width, _COLUMN, Kind.ATTENTION),
        matrix("attention.output", "self_attn.o_proj", width, queries, _ROW, Kind.ATTENTION),
        *_optional(section),
        norm("blocks.{}.mlp_norm", "model.layers.{}.post_attention_layernorm.weight", layers),
        matrix("mlp.gate", "mlp.gate_proj", inner, width, _COLUMN, Kind.MLP),
        matrix("mlp.up", "mlp.up_proj", inner, width, _COLUMN, Kind.MLP),
        matrix("mlp.down", "mlp.down_proj", width, inner, _ROW, Kind.MLP),
        norm("norm", "model.norm.weight", None),
        *_head(section),
    )


def _head(section: LlamaSection) -> Iterator[ParameterRow]:
    if section.num_labels is not None:
        name = "qa_outputs" if section.classifies == "span" else "score"
        yield from class_rows(section, name, bias=section.classifies != "sequence")
    elif not section.tie_word_embeddings:
        yield ParameterRow(
            name="head.weight",
            shape=(section.padded_vocab_size, section.hidden_size),
            kind=Kind.HEAD,
            init=Normal(section.initializer_range),
            split=_VOCABULARY,
            huggingface="lm_head.weight",
        )


def _optional(section: LlamaSection) -> Iterator[ParameterRow]:
    """Biases of query, key and value; norms of query and key heads."""
    heads = {"query": section.attention_heads, "key": section.key_value_heads, "value": section.key_value_heads}
    layers = range(section.num_hidden_layers)
    for name, count in heads.items() if section.attention_bias else ():
        yield ParameterRow(
            name=f"blocks.{{}}.attention.{name}.bias",
            shape=(count * section.head_size,),
            kind=Kind.BIAS,
            init=ZEROS,
            split=_COLUMN,
            decay=False,
            huggingface=f"model.layers.{{}}.self_attn.{name[0]}_proj.bias",
            layers=layers,
        )
    for name in ("query", "key") if section.qk_norm else ():
        yield ParameterRow(
            name=f"blocks.{{}}.attention.{name}_norm.weight",
            shape=(section.head_size,),
            kind=Kind.NORM,
            init=ONES,
            decay=False,
            partial_gradient=True,  # each rank normalises its own heads with it
            huggingface=f"model.layers.{{}}.self_attn.{name[0]}_norm.weight",
            layers=layers,
        )


def divisible(section: LlamaSection) -> tuple[Divisible, ...]:
    return (
        Divisible(number=section.key_value_heads, field="num_key_value_heads", words="key-value heads"),
        Divisible(number=section.attention_heads, field="num_attention_heads", words="attention heads"),
        Divisible(field="intermediate_size", number=section.intermediate_size),
    )
