"""`model:` of the ModernBERT family."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from megatrain.base.types import MOST_TOKENS, WIDEST, Count, NonNegative, Positive
from megatrain.model.architecture import ModelSection
from megatrain.model.window import BIDIRECTIONAL, LayerType, Window, windows_of

_Theta = Annotated[float, Field(ge=1, le=1e15)]


class ModernBertSection(ModelSection):
    """An encoder as ModernBERT, with the head of masked language modelling."""

    is_causal: ClassVar[bool] = False
    norm: ClassVar = "layer"

    family: Literal["modernbert"] = "modernbert"
    num_attention_heads: Count = Field(le=WIDEST)
    intermediate_size: Count = Field(le=WIDEST, description="width inside the GeGLU MLP")
    sliding_window: NonNegative = Field(
        64, le=MOST_TOKENS, description="positions on each side that a local layer sees, besides itself"
    )
    layer_types: Annotated[tuple[LayerType, ...], Field(strict=False, min_length=1)] = Field(
        ("full_attention", "sliding_attention", "sliding_attention"),
        description="of the layers, from the first on; a shorter list begins again",
    )
    rope_theta: _Theta = Field(160000.0, description="of global layers")
    local_rope_theta: _Theta = Field(10000.0, description="of local layers")
    tie_word_embeddings: Literal[True] = True
    layer_norm_eps: Positive = Field(1e-5, le=1)

    @property
    def windows(self) -> tuple[Window, ...]:
        """Of each layer."""
        local = (self.sliding_window, self.sliding_window)
        return windows_of(self.layer_types, local, BIDIRECTIONAL, self.num_hidden_layers)

    @property
    def window_counts(self) -> Mapping[Window, int]:
        return Counter(self.windows)

    @property
    def attention_heads(self) -> int:
        return self.num_attention_heads

    @property
    def mlp_width(self) -> int:
        return self.intermediate_size
