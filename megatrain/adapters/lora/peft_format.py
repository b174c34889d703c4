"""A LoRA as PEFT stores it: fields of adapter_config.json, and names. No torch."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatrain.adapters.lora import LowRankSection
from megatrain.model.parameter_row import ParameterRow

_LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}


def described(section: LowRankSection, linear: Sequence[ParameterRow], transposed: bool) -> dict[str, Any]:
    """Fields of adapter_config.json.

    Args:
        linear: rows of the weights that it stands beside.
        transposed: `transformers` has their matrices as [in, out].
    """
    names = [row.theirs.name.removesuffix(".weight") for row in linear if row.theirs is not None]
    patterns = sorted({r"\d+".join(re.escape(part) for part in name.split("{}")) for name in names})
    return {
        "peft_type": "LORA",
        "r": section.rank,
        "lora_alpha": section.alpha,
        "use_rslora": section.rank_stabilized,
        "target_modules": "|".join(patterns),  # the whole name of a module must match
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
    }


def renamed(
    section: LowRankSection, tensors: Mapping[str, Any], weight: Callable[[], Any] | None = None
) -> dict[str, Any]:
    """A and B under PEFT's names."""
    return {theirs: tensors[ours] for ours, theirs in _LEAVES.items()}
