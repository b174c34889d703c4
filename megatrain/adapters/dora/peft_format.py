"""The fields of a DoRA in PEFT's adapter_config.json. No torch."""

from collections.abc import Sequence
from typing import Any

from megatrain.adapters.dora import DoraSection
from megatrain.adapters.lora import peft_format
from megatrain.model.parameter_row import ParameterRow


def described(section: DoraSection, linear: Sequence[ParameterRow], transposed: bool) -> dict[str, Any]:
    """As `lora.peft_format.described`."""
    return peft_format.described(section, linear, transposed) | {"use_dora": True}
