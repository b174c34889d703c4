"""Rotary positions for sequences longer than a model was first trained on, without torch; kernels/rotary.py has the
formulas. `rope_type` and the fields are those of `transformers`."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from megatrain.base.section import Section
from megatrain.base.types import MOST_TOKENS, Count, Positive, Rate

Factor = Annotated[float, Field(ge=1, le=1e9)]


class Llama3Scaling(Section):
    """Slower rotation of the slow channels: as Llama 3.1."""

    rope_type: Literal["llama3"] = "llama3"
    factor: Factor = Field(description="how much slower the slowest channels turn")
    low_freq_factor: Rate = Field(1.0, description="channels that turn less often in the original length: slowed")
    high_freq_factor: Rate = Field(4.0, description="channels that turn more often in it: as they were")
    original_max_position_embeddings: Count = Field(le=MOST_TOKENS, description="tokens of that original length")


class LinearScaling(Section):
    """Slower rotation of all channels (arXiv 2306.15595, equation 4)."""

    rope_type: Literal["linear"]
    factor: Factor = Field(description="how much slower")


class YarnScaling(Section):
    """Slower rotation of the slow channels, and sharper attention (arXiv 2309.00071, section 3)."""

    rope_type: Literal["yarn"]
    factor: Factor = Field(description="how much slower the slowest channels turn")
    original_max_position_embeddings: Count = Field(le=MOST_TOKENS, description="tokens of the original length")
    beta_fast: Positive = Field(32.0, description="channels that turn more often in that length: as they were")
    beta_slow: Positive = Field(1.0, description="channels that turn less often in it: slowed by the whole factor")
    attention_factor: Positive | None = Field(
        None, description="that rotated queries and keys are multiplied by; default: 0.1·ln(factor) + 1"
    )
    truncate: bool = Field(True, description="the first and last channel between the two are rounded outwards")


def _rope_type(value: Any) -> str:
    found = value.get("rope_type", "llama3") if isinstance(value, dict) else getattr(value, "rope_type", "llama3")
    return found if isinstance(found, str) else repr(found)


RopeScaling = Annotated[
    Annotated[Llama3Scaling, Tag("llama3")]
    | Annotated[LinearScaling, Tag("linear")]
    | Annotated[YarnScaling, Tag("yarn")],
    Discriminator(_rope_type),
]
SCALINGS: dict[str, type[Llama3Scaling] | type[LinearScaling] | type[YarnScaling]] = {
    "llama3": Llama3Scaling,
    "linear": LinearScaling,
    "yarn": YarnScaling,
}
