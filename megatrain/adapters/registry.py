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


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """An adapter of linear layers, as the table, the trainer, checkpoints and exports know it.

    Attributes:
        section: its `finetune.adapter` section.
        rows: (section, row of the weight of a linear layer of blocks) -> rows of what stands beside that weight, in the
            same module; none where the layer is no target.
        issues: (section, rows of the weights of the linear layers) -> what of the section does not go with them:
            (field, value, rule, fix).
        module: "package.module:function" of (section, linear layer, on the meta device) -> the layer with the adapter,
            a subclass of nn.Linear that keeps the names of weight and bias.
        change: "package.module:function" of (section, tensors of `rows` by the last part of their names, offsets and
            sizes of a part of the weight) -> fp32 tensor of that size, which merging adds to the part.
        peft: "package.module:function" of (section, rows, transposed) -> fields of PEFT's adapter_config.json, and how
            the last parts of names are called there; "": it is exported merged only.
    """

    section: type[AdapterSection]
    rows: Callable[[Any, ParameterRow], tuple[ParameterRow, ...]]
    issues: Callable[[Any, tuple[ParameterRow, ...]], Iterator[tuple[str, Any, str, str]]]
    module: str
    change: str
    peft: str = ""


ADAPTERS: Registry[AdapterSpec] = Registry("adapter")

if TYPE_CHECKING:
    AnyAdapter = AdapterSection
else:
    AnyAdapter = chosen(AdapterSection, ADAPTERS, key="name", default="lora")
