"""DoRA (arXiv 2402.09353): the direction of a weight W is adapted by a LoRA, its magnitude by a number for each output.

    y = m / n · (x·Wᵀ + s·(x·Aᵀ)·Bᵀ)      n = ‖W + s·B·A‖ over the inputs of each output, without gradient (section 4.3)

What is trained and kept of the magnitude m is its change δ = m − ‖W‖. It begins at zero, so that a run starts from the
base exactly in bf16 too, and no start has to read W for it; its gradient and Adam's updates are those of m. Where W is
split by output over tensor-parallel ranks, so is δ. Where W is split by input, ‖W‖² and n² are sums over the ranks, and
the whole δ gets a part of its gradient.
"""

from typing import Literal

from megatrain.adapters import lora
from megatrain.adapters.lora import LowRankSection
from megatrain.adapters.registry import ADAPTERS, AdapterSpec, Widths
from megatrain.model.parameter_row import ZEROS, ParameterRow

MAGNITUDE = "dora_magnitude"


class DoraSection(LowRankSection):
    name: Literal["dora"] = "dora"


def rows(section: DoraSection, row: ParameterRow) -> tuple[ParameterRow, ...]:
    """Of A, B and δ beside a weight; none where no target names it."""
    product = lora.rows(section, row)
    if not product:
        return ()
    magnitude = ParameterRow(
        name=f"{row.name.removesuffix('.weight')}.{MAGNITUDE}",
        shape=(row.shape[0],),
        kind=row.kind,
        init=ZEROS,
        split=0 if row.split == 0 else None,
        decay=False,
        partial_gradient=row.split == 1,
        layers=row.layers,
        of_adapter=True,
    )
    return (*product, magnitude)


def widths(row: ParameterRow, local: tuple[float, ...]) -> Widths:
    """Of the product; and of the layer's output before it is scaled, which δ's gradient needs."""
    return Widths(elementwise=local[0]) if row.name.endswith(f".{MAGNITUDE}") else lora.widths(row, local)


DORA = ADAPTERS.register(
    "dora",
    AdapterSpec(
        section=DoraSection,
        rows=rows,
        issues=lora.issues,
        module="megatrain.adapters.dora.module:with_dora",
        merge="megatrain.adapters.dora.module:merge",
        widths=widths,
        peft="megatrain.adapters.dora.peft_format:described",
        peft_tensors="megatrain.adapters.dora.module:for_peft",
    ),
)
