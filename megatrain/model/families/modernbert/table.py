"""The weights of a ModernBERT, and where its tensor-parallel regions begin and end (arXiv 1909.08053)."""

import math
from collections.abc import Iterator
from typing import Literal

from megatrain.model.class_table import class_rows
from megatrain.model.families.modernbert.section import ModernBertSection
from megatrain.model.family import Divisible, Region
from megatrain.model.parameter_row import ONES, ZEROS, HuggingFaceTensor, Kind, Normal, ParameterRow

REGIONS = {
    r"embedding": Region(leave=True),
    r"blocks\.\d+\.attention": Region(enter=True, leave=True),
    r"blocks\.\d+\.mlp": Region(enter=True, leave=True),
    r"head": Region(enter=True),  # the loss leaves reduced; see kernels/cross_entropy.py
}
_Dim = Literal[0, 1]  # of an [out, in] weight
_COLUMN: _Dim = 0
_ROW: _Dim = 1


def rows(section: ModernBertSection) -> tuple[ParameterRow, ...]:
    """Matrices are normal with standard deviation initializer_range; those that write into the residual stream, and the
    head's, are divided by √(2L). Norm weights are one, biases zero. The first layer has no norm before attention: the
    embedding's stands there."""
    width, inner, layers = section.hidden_size, section.mlp_width, range(section.num_hidden_layers)
    inside = Normal(section.initializer_range)
    out_of = Normal(section.initializer_range / math.sqrt(2 * section.num_hidden_layers))

    def matrix(name: str, theirs: HuggingFaceTensor, out: int, into: int, split: _Dim) -> ParameterRow:
        return ParameterRow(
            name=f"blocks.{{}}.{name}.weight",
            shape=(out, into),
            kind=Kind.ATTENTION if name.startswith("attention") else Kind.MLP,
            init=out_of if split == _ROW else inside,
            split=split,
            huggingface=theirs,
            layers=layers,
        )

    def part(name: str, number: int, parts: int) -> HuggingFaceTensor:
        return HuggingFaceTensor(f"model.layers.{{}}.{name}.weight", part=number, parts=parts)

    return (
        ParameterRow(
            name="embedding.weight",
            shape=(section.padded_vocab_size, width),
            kind=Kind.EMBEDDING,
            init=inside,
            split=0,
            huggingface="model.embeddings.tok_embeddings.weight",
        ),
        _norm(section, "embedding_norm", "model.embeddings.norm.weight"),
        _norm(section, "blocks.{}.attention_norm", "model.layers.{}.attn_norm.weight", layers[1:]),
        matrix("attention.query", part("attn.Wqkv", 0, 3), width, width, _COLUMN),
        matrix("attention.key", part("attn.Wqkv", 1, 3), width, width, _COLUMN),
        matrix("attention.value", part("attn.Wqkv", 2, 3), width, width, _COLUMN),
        matrix("attention.output", part("attn.Wo", 0, 1), width, width, _ROW),
        _norm(section, "blocks.{}.mlp_norm", "model.layers.{}.mlp_norm.weight", layers),
        matrix("mlp.gate", part("mlp.Wi", 0, 2), inner, width, _COLUMN),
        matrix("mlp.up", part("mlp.Wi", 1, 2), inner, width, _COLUMN),
        matrix("mlp.down", part("mlp.Wo", 0, 1), width, inner, _ROW),
        _norm(section, "norm", "model.final_norm.weight"),
        *_head(section, out_of),
    )


def _head(section: ModernBertSection, init: Normal) -> Iterator[ParameterRow]:
    yield ParameterRow(
        name="transform.dense.weight",
        shape=(section.hidden_size, section.hidden_size),
        kind=Kind.HEAD,
        init=init,
        huggingface="head.dense.weight",
    )
    yield _norm(section, "transform.norm", "head.norm.weight")
    if section.num_labels is not None:
        yield from class_rows(section, "classifier", bias=True)
        return
    yield ParameterRow(
        name="head.bias",
        shape=(section.padded_vocab_size,),
        kind=Kind.BIAS,
        init=ZEROS,
        split=0,
        decay=False,
        huggingface="decoder.bias",
    )


def _norm(section: ModernBertSection, name: str, theirs: str, layers: range | None = None) -> ParameterRow:
    return ParameterRow(
        name=f"{name}.weight",
        shape=(section.hidden_size,),
        kind=Kind.NORM,
        init=ONES,
        decay=False,
        huggingface=theirs,
        layers=layers,
    )


def divisible(section: ModernBertSection) -> tuple[Divisible, ...]:
    return (
        Divisible(number=section.attention_heads, field="num_attention_heads", words="attention heads"),
        Divisible(field="intermediate_size", number=section.intermediate_size),
    )
