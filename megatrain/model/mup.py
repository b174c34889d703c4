"""Maximal update parametrisation: what makes the best learning rate of a narrow model that of a wide one. No torch.

Of "Tensor Programs V" (arXiv 2203.03466) table 8, for Adam, which allows tied word embeddings. With m = width /
base_width, and heads and MLP as many times wider than those of the base model as the whole is:

    kind of weight                              deviation at the start   learning rate   output
    embeddings, norms, biases                   σ                        η               · embedding_multiplier
    matrices of attention and MLPs              σ/√m                     η/m
    head                                        σ                        η               · output_multiplier / m
    scores of attention                                                                  √base_head_size / head size

At m = 1, heads of base_head_size and multipliers of 1, that is the standard parametrisation. As Cerebras and EleutherAI
have it (The Practitioner's Guide to the Maximal Update Parameterization, 2024), but for the scale of scores, which is
that of microsoft/mup: 1/d, with a constant that makes it 1/√d at the base.

Weight decay is independent of a weight's own rate: every matrix shrinks by η · weight_decay a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from typing import TYPE_CHECKING

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import WIDEST, Count, Positive
from megatrain.model.parameter_row import Kind, Normal, ParameterRow

if TYPE_CHECKING:
    from megatrain.model.architecture import ModelSection

_FINAL_NORM = ("norm.weight", "norm.bias")


class MupSection(Section):
    """`model.mup:` in every family whose module multiplies by what is said here."""

    base_width: Count = Field(
        le=WIDEST, description="hidden_size of the model whose learning rate and initializer_range these are"
    )
    base_head_size: Count = Field(
        64, le=WIDEST, description="scores of attention are multiplied by √base_head_size / the head's size"
    )
    embedding_multiplier: Positive = Field(1.0, le=1e6, description="of embedded tokens and positions")
    output_multiplier: Positive = Field(1.0, le=1e6, description="of logits, over hidden_size / base_width")


def embedding_factor(section: ModelSection) -> float:
    """Of embedded tokens and positions."""
    return 1.0 if section.mup is None else section.mup.embedding_multiplier


def output_factor(section: ModelSection) -> float:
    """Of logits, and so of what the head multiplies."""
    mup = section.mup
    return 1.0 if mup is None else mup.output_multiplier * mup.base_width / section.hidden_size


def attention_scale(section: ModelSection) -> float | None:
    """Of scores; None: 1/√head size."""
    return None if section.mup is None else sqrt(section.mup.base_head_size) / section.head_size


def parametrised(rows: tuple[ParameterRow, ...], section: ModelSection) -> tuple[ParameterRow, ...]:
    """A table with the deviations and learning rates of the section's `mup`.

    What the model multiplies by is in none of its weights, and `transformers` knows no such factors: the table says
    which tensors of theirs hold them instead, so that the logits are the same.
    """
    return rows if section.mup is None else tuple(_rows(rows, section))


def _rows(rows: tuple[ParameterRow, ...], section: ModelSection) -> Iterator[ParameterRow]:
    assert section.mup is not None
    ratio = section.hidden_size / section.mup.base_width
    for row in rows:
        if row.is_hidden_matrix and isinstance(row.init, Normal):
            row = replace(row, init=Normal(row.init.std / sqrt(ratio)), lr_scale=1 / ratio)
        factor = _folded(row, section)
        if factor != 1.0 and row.theirs is not None:
            row = replace(row, huggingface=replace(row.theirs, factor=factor))
        yield row


def _folded(row: ParameterRow, section: ModelSection) -> float:
    """By what their weight is ours. Scores are linear in the query, or in its norm's weight where it has one; logits in
    the weight and bias of the norm before the head, also where the head is the embedding."""
    into = embedding_factor(section)
    if row.kind is Kind.EMBEDDING:
        return into
    if row.name in _FINAL_NORM:
        return output_factor(section) / (into if section.ties_head else 1.0)
    query = "query_norm" if section.normalizes_heads else "query"
    if row.name.startswith(f"blocks.{{}}.attention.{query}."):
        return (attention_scale(section) or 0.0) * sqrt(section.head_size)
    return 1.0
