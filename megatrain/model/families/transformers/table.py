"""The weights of a model of `transformers`, as its description has them. No torch."""

import math

from megatrain.model.families.transformers.section import TransformersSection, Weight
from megatrain.model.parameter_row import Constant, Kind, Normal, ParameterRow, Uniform

_LAWS: dict[str, type[Normal] | type[Uniform] | type[Constant]] = {
    "normal": Normal,
    "uniform": Uniform,
    "constant": Constant,
}
_UNKNOWN = Constant(math.nan)  # never drawn: `complete` refuses a start from the seed


def rows(section: TransformersSection) -> tuple[ParameterRow, ...]:
    """Names are those of transformers behind "model."; nothing is split."""
    if section.description is None:
        return ()
    return tuple(_row(weight, section) for weight in section.description.weights)


def _row(weight: Weight, section: TransformersSection) -> ParameterRow:
    shape = (section.padded_vocab_size, *weight.shape[1:]) if weight.vocabulary else weight.shape
    return ParameterRow(
        name=f"model.{weight.name}",
        shape=shape,
        kind=weight.kind,
        init=_UNKNOWN if weight.init is None else _LAWS[weight.init](weight.value),
        decay=len(shape) > 1 and weight.kind not in (Kind.NORM, Kind.BIAS),
        huggingface=weight.name,
        layers=None if weight.first is None or weight.last is None else range(weight.first, weight.last + 1),
    )
