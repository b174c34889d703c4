"""The weights of a Gemma 3, and where its tensor-parallel regions begin and end (arXiv 1909.08053)."""

import math
from collections.abc import Iterator
from typing import Literal

from megatrain.model.class_table import class_rows
from megatrain.model.families.gemma3.section import Gemma3Section
from megatrain.model.family import Divisible, Region
from megatrain.model.parameter_row import ZEROS, Kind, Normal, ParameterRow

REGIONS = {
    r"embedding": Region(leave=True),
    r"blocks\.\d+\.attention": Region(enter=True, leave=True),
    r"blocks\.\d+\.mlp": Region(enter=True, leave=True),
    r"head": Region(enter=True),  # the loss leaves reduced; see kernels/cross_entropy.py
}
_Dim = Literal[0, 1]  # of an [out, in] weight
_COLUMN: _Dim = 0
_ROW: _Dim = 1


def rows(section: Gemma3Section) -> tuple[ParameterRow, ...]:
    """Matrices are normal with standard deviation initializer_range; those that write into the residual stream are
    divided by √(2L). Norm weights, kept less one, are zero."""
    width, inner = section.hidden_size, section.mlp_width
    queries, keys = (heads * section.head_size for heads in (section.attention_heads, section.key_value_heads))
    inside = Normal(section.initializer_range)
    into_stream = Normal(section.initializer_range / math.sqrt(2 * section.num_hidden_layers))

    def matrix(name: str, theirs: str, out: int, into: int, split: _Dim) -> ParameterRow:
        return ParameterRow(
            name=f"blocks.{{}}.{name}.weight",
            shape=(out, into),
            kind=Kind.ATTENTION if name.startswith("attention") else Kind.MLP,
            init=into_stream if split == _ROW else inside,
            split=split,
            huggingface=f"model.layers.{{}}.{theirs}.weight",
            layers=range(section.num_hidden_layers),
        )

    return (
        ParameterRow(
            name="embedding.weight",
            shape=(section.padded_vocab_size, width),
            kind=Kind.EMBEDDING,
            init=inside,
            split=0,
            huggingface="model.embed_tokens.weight",
        ),
        matrix("attention.query", "self_attn.q_proj", queries, width, _COLUMN),
        matrix("attention.key", "self_attn.k_proj", keys, width, _COLUMN),
        matrix("attention.value", "self_attn.v_proj", keys, width, _COLUMN),
        matrix("attention.output", "self_attn.o_proj", width, queries, _ROW),
        matrix("mlp.gate", "mlp.gate_proj", inner, width, _COLUMN),
        matrix("mlp.up", "mlp.up_proj", inner, width, _COLUMN),
        matrix("mlp.down", "mlp.down_proj", width, inner, _ROW),
        *_norms(section),
        *(() if section.num_labels is None else class_rows(section, "score", bias=section.classifies != "sequence")),
    )


def _norms(section: Gemma3Section) -> Iterator[ParameterRow]:
    layers = range(section.num_hidden_layers)
    for name, theirs in (
        ("attention_norm", "input_layernorm"),
        ("attention_output_norm", "post_attention_layernorm"),
        ("mlp_norm", "pre_feedforward_layernorm"),
        ("mlp_output_norm", "post_feedforward_layernorm"),
    ):
        yield _norm(f"blocks.{{}}.{name}", f"model.layers.{{}}.{theirs}", section.hidden_size, layers)
    for name in ("query", "key") if section.qk_norm else ():  # each rank normalises its own heads with them
        ours, theirs = f"blocks.{{}}.attention.{name}_norm", f"model.layers.{{}}.self_attn.{name[0]}_norm"
        yield _norm(ours, theirs, section.head_size, layers, partial_gradient=True)
    yield _norm("norm", "model.norm", section.hidden_size, None)


def _norm(name: str, theirs: str, width: int, layers: range | None, *, partial_gradient: bool = False) -> ParameterRow:
    return ParameterRow(
        name=f"{name}.weight",
        shape=(width,),
        kind=Kind.NORM,
        init=ZEROS,
        decay=False,
        partial_gradient=partial_gradient,
        huggingface=f"{theirs}.weight",
        layers=layers,
    )


def divisible(section: Gemma3Section) -> tuple[Divisible, ...]:
    return (
        Divisible(number=section.key_value_heads, field="num_key_value_heads", words="key-value heads"),
        Divisible(number=section.attention_heads, field="num_attention_heads", words="attention heads"),
        Divisible(field="intermediate_size", number=section.intermediate_size),
    )
