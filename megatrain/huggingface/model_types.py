"""The model types of `transformers` that are Llamas, and what each takes where its config.json is silent. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from megatrain.base.errors import ConfigError

LONGEST = 1 << 40  # positions
_DEFAULT_WINDOW = 4096  # positions, of a sliding_window that is not given


class Part(BaseModel):
    """Of config.json. Fields that say nothing of the weights are skipped."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelType:
    """What a model type of `transformers` has.

    Attributes:
        attention_bias, qk_norm: of a LlamaSection.
        defaults: of fields that are not given at all, where they are not ConfigJson's; null is not one of them.
        always_slides: whether sliding_window holds without use_sliding_window; None: there is no sliding window.
    """

    attention_bias: bool = False
    qk_norm: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    always_slides: bool | None = None


MODEL_TYPES = {
    "llama": ModelType(),
    "mistral": ModelType(defaults={"num_key_value_heads": 8}, always_slides=True),
    "qwen2": ModelType(attention_bias=True, defaults={"num_key_value_heads": 32}, always_slides=False),
    "qwen3": ModelType(qk_norm=True, defaults={"num_key_value_heads": 32, "head_dim": 128}, always_slides=False),
}


class Window(Part):
    """What config.json says of sliding-window attention."""

    max_position_embeddings: Annotated[int, Field(ge=1, le=LONGEST)]
    use_sliding_window: bool | None = False
    sliding_window: Annotated[int, Field(ge=1, le=LONGEST)] | None = _DEFAULT_WINDOW
    layer_types: list[str] | None = None


def check_window(found: Window, kind: ModelType, file: Path) -> None:
    """A window that is no shorter than the longest sequence hides nothing.

    Raises:
        ConfigError: there is one that does, or layers of another kind.
    """
    window = found.sliding_window if kind.always_slides or found.use_sliding_window else None
    if window is not None and window < found.max_position_embeddings:
        name, off = ("sliding_window", "null") if kind.always_slides else ("use_sliding_window", "false")
        value = f"is {window}" if kind.always_slides else f"is True, with a sliding_window of {window}"
        if "sliding_window" not in found.model_fields_set:
            value += " by default"
        raise ConfigError(
            f"{file}: {name}: {value}, less than max_position_embeddings ({found.max_position_embeddings}); "
            f"megatrain's attention sees all earlier positions. For sequences of at most {window} tokens, set {name} "
            f"to {off} and max_position_embeddings to {window}; for longer ones take a model without a sliding window."
        )
    allowed = ("full_attention",) if window is None else ("full_attention", "sliding_attention")
    for layer in found.layer_types or ():
        if layer not in allowed:
            text = f"has {layer!r:.60}; megatrain has 'full_attention' only. Take a model without such layers."
            raise ConfigError(f"{file}: layer_types: {text}")
