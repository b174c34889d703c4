"""Bottleneck adapters (Houlsby and others, arXiv 1902.00751): behind attention and the MLP of each block, before what
they give is added to the residual stream, two small layers with an activation between them, and a connection around:

    y = x + up(activation(down(x)))        down [bottleneck, hidden], up [hidden, bottleneck], both with a bias

`up` is zero at the start, so that training begins from the base exactly (the paper draws it near zero). `down` begins
as torch's linear layers do. Norms of the base stay as they are. What the adapter works on is outside of a
tensor-parallel region: every rank has it whole, for the positions that it has of the residual stream. No weight of the
base could hold what it does: it is never merged.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from megatrain.adapters.registry import ADAPTERS, AdapterSection, AdapterSpec, Widths
from megatrain.base.types import WIDEST, Count
from megatrain.model.parameter_row import ZEROS, Kind, ParameterRow, Uniform

Sublayer = Literal["attention", "mlp"]
_KINDS = {"attention": Kind.ATTENTION, "mlp": Kind.MLP}


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class HoulsbySection(AdapterSection):
    name: Literal["houlsby"] = "houlsby"
    bottleneck: Count = Field(64, le=WIDEST, description="channels between the two layers")
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    after: Annotated[tuple[Sublayer, ...], Field(strict=False, min_length=1), BeforeValidator(_as_list)] = Field(
        ("attention", "mlp"), description="what an adapter stands behind"
    )


def rows(section: HoulsbySection, row: ParameterRow) -> tuple[ParameterRow, ...]:
    """Of an adapter behind the sublayer that a row-parallel weight ends; none behind the others."""
    if row.split != 1 or row.kind not in (_KINDS[name] for name in section.after):
        return ()
    module, width, inner = row.name.rpartition(".weight")[0].rpartition(".")[0], row.shape[0], section.bottleneck

    def one(name: str, shape: tuple[int, ...], init: Uniform | None = None) -> ParameterRow:
        return ParameterRow(
            name=f"{module}.adapter.{name}",
            shape=shape,
            kind=row.kind if len(shape) > 1 else Kind.BIAS,
            init=init or ZEROS,
            decay=len(shape) > 1,
            layers=row.layers,
            of_adapter=True,
        )

    return (
        one("down.weight", (inner, width), Uniform(1 / math.sqrt(width))),
        one("down.bias", (inner,)),
        one("up.weight", (width, inner)),
        one("up.bias", (width,)),
    )


def widths(row: ParameterRow, local: tuple[float, ...]) -> Widths:
    """`down` keeps its input, the activation its input, `up` its own."""
    if row.name.endswith(".down.weight"):
        return Widths(made=local[0], inside=local[0], elementwise=local[0] + local[1])
    return Widths(made=local[0]) if row.name.endswith(".up.weight") else Widths()


def issues(section: HoulsbySection, linear: tuple[ParameterRow, ...]) -> Iterator[tuple[str, Any, str, str]]:
    """A bottleneck that is none, and a sublayer that no block has."""
    for name in section.after:
        if not any(row.split == 1 and row.kind is _KINDS[name] for row in linear):
            yield "after", name, "is nothing that the base's blocks have", "Leave it out."
    width = min((row.shape[0] for row in linear if row.split == 1), default=section.bottleneck)
    if section.bottleneck > width:
        yield "bottleneck", section.bottleneck, f"is wider than the residual stream ({width})", f"At most {width}."


HOULSBY = ADAPTERS.register(
    "houlsby",
    AdapterSpec(
        section=HoulsbySection,
        rows=rows,
        issues=issues,
        behind="megatrain.adapters.houlsby.module:Bottleneck",
        widths=widths,
    ),
)
