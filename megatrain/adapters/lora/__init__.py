"""LoRA (arXiv 2106.09685): beside the weight W of a linear layer a product B·A of low rank, which alone is trained.

    y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ        A [rank, in], B [out, rank], s = alpha / rank, or alpha / √rank (arXiv 2312.03732)

A begins as `peft` begins it, uniform within 1/√in; B is zero, so that training starts from the base. Where W is split
by output over tensor-parallel ranks, so is B, and each rank has the whole A with a part of its gradient; where W is
split by input, so is A, each rank's product is a part of a sum that the layer's own reduction completes, and the
whole B gets a part of its gradient.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from megatrain.adapters.registry import ADAPTERS, AdapterSection, AdapterSpec, Widths
from megatrain.base.types import WIDEST, Count, Positive
from megatrain.model.parameter_row import ZEROS, Kind, ParameterRow, Uniform

ALL = "all-linear"
_KINDS = {"attention": Kind.ATTENTION, "mlp": Kind.MLP}


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class LowRankSection(AdapterSection):
    """Of a product B·A beside linear layers."""

    rank: Count = Field(16, le=WIDEST, description="of the product; at most the shorter side of each matrix")
    alpha: Positive = Field(32.0, description="the product is scaled by alpha / rank")
    rank_stabilized: bool = Field(False, description="scale it by alpha / √rank: as peft's use_rslora")
    target_modules: Annotated[tuple[str, ...], Field(strict=False, min_length=1), BeforeValidator(_as_list)] = Field(
        (ALL,),
        description="all-linear (of the blocks, not the head), attention, mlp, or names of layers: query or q_proj",
    )

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class LoraSection(LowRankSection):
    name: Literal["lora"] = "lora"


def rows(section: LowRankSection, row: ParameterRow) -> tuple[ParameterRow, ...]:
    """Of A and B beside a weight; none where no target names it."""
    if not any(_is_target(target, row) for target in section.target_modules):
        return ()
    module, (out, into) = row.name.removesuffix(".weight"), row.shape
    return (
        ParameterRow(
            name=f"{module}.lora_a",
            shape=(section.rank, into),
            kind=row.kind,
            init=Uniform(1 / math.sqrt(into)),  # kaiming_uniform_(a=√5) of torch
            split=1 if row.split == 1 else None,
            partial_gradient=row.split == 0,
            layers=row.layers,
            of_adapter=True,
        ),
        ParameterRow(
            name=f"{module}.lora_b",
            shape=(out, section.rank),
            kind=row.kind,
            init=ZEROS,
            split=0 if row.split == 0 else None,
            partial_gradient=row.split == 1,
            layers=row.layers,
            of_adapter=True,
        ),
    )


def widths(row: ParameterRow, local: tuple[float, ...]) -> Widths:
    """Of x·Aᵀ, which B's gradient needs, and of what is added to the layer's output."""
    return Widths(made=local[0], inside=local[0] if row.name.endswith(".lora_a") else 0.0)


def issues(section: LowRankSection, linear: tuple[ParameterRow, ...]) -> Iterator[tuple[str, Any, str, str]]:
    """Targets that are no layer, and a rank that no matrix has."""
    names = ", ".join(dict.fromkeys(row.name.split(".")[-2] for row in linear))
    for target in section.target_modules:
        if not any(_is_target(target, row) for row in linear):
            rule = f"{target!r}: is no linear layer of the base's blocks"
            yield "target_modules", None, rule, f"There are: {ALL}, {', '.join(_KINDS)}, {names}."
    targets = [row for row in linear if rows(section, row)]
    smallest = min(targets, key=lambda row: min(row.shape), default=None)
    if smallest is not None and section.rank > min(smallest.shape):
        sides = " × ".join(map(str, smallest.shape))
        rule = f"is larger than the shorter side of {smallest.name.format('N')} ({sides})"
        yield "rank", section.rank, rule, f"At most {min(smallest.shape)}."


def _is_target(target: str, row: ParameterRow) -> bool:
    if target in _KINDS:
        return row.kind is _KINDS[target]
    return target == ALL or any(f".{name}".endswith(f".{target}") for name in module_names(row))


def module_names(row: ParameterRow) -> Iterator[str]:
    """What the linear layer is called here, and in `transformers`."""
    yield row.name.removesuffix(".weight")
    if row.theirs is not None:
        yield row.theirs.name.removesuffix(".weight")


LORA = ADAPTERS.register(
    "lora",
    AdapterSpec(
        section=LoraSection,
        rows=rows,
        issues=issues,
        module="megatrain.adapters.lora.module:with_lora",
        merge="megatrain.adapters.lora.module:merge",
        widths=widths,
        peft="megatrain.adapters.lora.peft_format:described",
        peft_tensors="megatrain.adapters.lora.peft_format:renamed",
    ),
)
