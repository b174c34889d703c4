"""What an adapter registers, without torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatrain.base.registry import Registry
from megatrain.base.section import Section, chosen
from megatrain.model.parameter_row import ParameterRow


class AdapterSection(Section):
    """What every adapter's section has."""

    name: str = "lora"


@dataclass(frozen=True, slots=True)
class Widths:
    """Channels that an adapter makes of a token.

    Attributes:
        made: by its matrices.
        inside: of those, what is kept for the backward pass; what is added to a layer's output is not.
        elementwise: what other ops make and keep.
    """

    made: float = 0.0
    inside: float = 0.0
    elementwise: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """An adapter, as the table, the trainer, checkpoints and exports know it.

    One that stands beside linear layers names `module`; one that stands behind attention or an MLP names `behind`.

    Attributes:
        section: its `finetune.adapter` section.
        rows: (section, row of the weight of a linear layer of blocks) -> rows of what stands beside that weight, in the
            same module, or in the module `adapter` of the sublayer that it ends; none where the layer is no target.
        issues: (section, rows of the weights of the linear layers) -> what of the section does not go with them:
            (field, value, rule, fix).
        module: "package.module:function" of (section, linear layer, on the meta device) -> the layer with the adapter,
            a subclass of nn.Linear that keeps the names of weight and bias.
        merge: "package.module:function" of (section, tensors of `rows` by the last part of their names, a part of the
            weight in fp32, its offsets, a function that gives whole rows of the weight, those of the part) -> the part
            of the merged weight, fp32; "": no weight could hold what the adapter does.
        behind: "package.module:Class", an nn.Module made from (section, width of the residual stream), which is called
            with what a sublayer gives, whole on every tensor-parallel rank, and gives as much.
        widths: (row of `rows`, its shape on a tensor-parallel rank) -> what it makes of a token.
        peft: "package.module:function" of (section, rows, transposed) -> fields of PEFT's adapter_config.json; "": it
            is exported merged only.
        peft_tensors: "package.module:function" of (section, tensors as for `merge`, a function that gives the whole
            weight in fp32) -> tensors by the last part of their names in PEFT.
    """

    section: type[AdapterSection]
    rows: Callable[[Any, ParameterRow], tuple[ParameterRow, ...]]
    issues: Callable[[Any, tuple[ParameterRow, ...]], Iterator[tuple[str, Any, str, str]]]
    widths: Callable[[ParameterRow, tuple[float, ...]], Widths]
    module: str = ""
    merge: str = ""
    behind: str = ""
    peft: str = ""
    peft_tensors: str = ""


ADAPTERS: Registry[AdapterSpec] = Registry("adapter")

if TYPE_CHECKING:
    AnyAdapter = AdapterSection
else:
    AnyAdapter = chosen(AdapterSection, ADAPTERS, key="name", default="lora")
