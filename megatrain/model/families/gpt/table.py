"""The weights of a GPT, and where its tensor-parallel regions begin and end (arXiv 1909.08053)."""

import math
from collections.abc import Iterator
from typing import Literal

from megatrain.model.class_table import class_rows
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.family import Divisible, Region
from megatrain.model.parameter_row import ONES, ZEROS, HuggingFaceTensor, Kind, Normal, ParameterRow

REGIONS = {
    r"embedding": Region(leave=True),
    r"position_embedding": Region(whole=True),
    r"blocks\.\d+\.attention": Region(enter=True, leave=True),
    r"blocks\.\d+\.mlp": Region(enter=True, leave=True),
    r"head": Region(enter=True),  # the loss leaves reduced; see kernels/cross_entropy.py
}
_Dim = Literal[0, 1]  # of an [out, in] weight
_COLUMN: _Dim = 0
_ROW: _Dim = 1
_VOCABULARY: _Dim = 0


def rows(section: GPTSection) -> tuple[ParameterRow, ...]:
    """Matrices and positions are normal with standard deviation initializer_range; those that write into the residual
    stream are divided by √(2L) (GPT-2, section 2.3). Norm weights are one, biases zero."""
    width, layers = section.hidden_size, range(section.num_hidden_layers)
    inside = Normal(section.initializer_range)
    vocabulary = (section.padded_vocab_size, width)
    table = (
        ParameterRow(
            name="embedding.weight",
            shape=vocabulary,
            kind=Kind.EMBEDDING,
            init=inside,
            split=_VOCABULARY,
            huggingface="transformer.wte.weight",
        ),
        ParameterRow(
            name="position_embedding.weight",
            shape=(section.max_position_embeddings, width),
            kind=Kind.EMBEDDING,
            init=inside,
            huggingface="transformer.wpe.weight",
        ),
        *_norm("blocks.{}.attention_norm", "transformer.h.{}.ln_1", width, layers),
        *(
            row
            for part, name in enumerate(("query", "key", "value"))
            for row in _linear(section, f"attention.{name}", "attn.c_attn", width, width, _COLUMN, part=part, parts=3)
        ),
        *_linear(section, "attention.output", "attn.c_proj", width, width, _ROW),
        *_norm("blocks.{}.mlp_norm", "transformer.h.{}.ln_2", width, layers),
        *_linear(section, "mlp.up", "mlp.c_fc", section.mlp_width, width, _COLUMN),
        *_linear(section, "mlp.down", "mlp.c_proj", width, section.mlp_width, _ROW),
        *_norm("norm", "transformer.ln_f", width, None),
    )
    if section.num_labels is not None:
        name = {"sequence": "score", "token": "classifier", "span": "qa_outputs"}[section.classifies]
        return (*table, *class_rows(section, name, bias=section.classifies != "sequence"))
    if section.tie_word_embeddings:
        return table
    head = ParameterRow(
        name="head.weight",
        shape=vocabulary,
        kind=Kind.HEAD,
        init=inside,
        split=_VOCABULARY,
        huggingface="lm_head.weight",
    )
    return (*table, head)


def _linear(
    section: GPTSection, name: str, theirs: str, out: int, into: int, split: _Dim, *, part: int = 0, parts: int = 1
) -> Iterator[ParameterRow]:
    """Weight and bias. The bias of a row-parallel layer is whole: it is added to the sum over the ranks."""
    inside = Normal(section.initializer_range)
    into_stream = Normal(section.initializer_range / math.sqrt(2 * section.num_hidden_layers))
    layers = range(section.num_hidden_layers)
    yield ParameterRow(
        name=f"blocks.{{}}.{name}.weight",
        shape=(out, into),
        kind=Kind.ATTENTION if name.startswith("attention") else Kind.MLP,
        init=into_stream if split == _ROW else inside,
        split=split,
        huggingface=HuggingFaceTensor(f"transformer.h.{{}}.{theirs}.weight", transposed=True, part=part, parts=parts),
        layers=layers,
    )
    yield ParameterRow(
        name=f"blocks.{{}}.{name}.bias",
        shape=(out,),
        kind=Kind.BIAS,
        init=ZEROS,
        split=_COLUMN if split == _COLUMN else None,
        decay=False,
        huggingface=HuggingFaceTensor(f"transformer.h.{{}}.{theirs}.bias", part=part, parts=parts),
        layers=layers,
    )


def _norm(name: str, theirs: str, width: int, layers: range | None) -> Iterator[ParameterRow]:
    for leaf, init in (("weight", ONES), ("bias", ZEROS)):
        yield ParameterRow(
            name=f"{name}.{leaf}",
            shape=(width,),
            kind=Kind.NORM,
            init=init,
            decay=False,
            huggingface=f"{theirs}.{leaf}",
            layers=layers,
        )


def divisible(section: GPTSection) -> tuple[Divisible, ...]:
    return (
        Divisible(number=section.attention_heads, field="num_attention_heads", words="attention heads"),
        Divisible(field="intermediate_size", number=section.mlp_width),
    )
