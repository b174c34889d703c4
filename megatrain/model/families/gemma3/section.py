"""`model:` of the Gemma 3 family, to which Gemma 2 belongs."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from megatrain.base.types import MOST_TOKENS, WIDEST, Count, Positive
from megatrain.model.architecture import ModelSection
from megatrain.model.window import CAUSAL, LayerType, Window, causal_window, windows_of

_Theta = Annotated[float, Field(ge=1, le=1e15)]
_PATTERN: tuple[LayerType, ...] = (*("sliding_attention",) * 5, "full_attention")


class Gemma3Section(ModelSection):
    """A decoder as Gemma 3, or 2. Embedded tokens are multiplied by √hidden_size; norm weights are kept less one."""

    norm: ClassVar = "fp32 rms"

    family: Literal["gemma3"] = "gemma3"
    num_attention_heads: Count = Field(le=WIDEST)
    num_key_value_heads: Count | None = Field(
        None, le=WIDEST, description="grouped-query attention; default: one per head"
    )
    head_dim: Count = Field(256, le=WIDEST)
    intermediate_size: Count = Field(le=WIDEST, description="width inside the GeGLU MLP")
    qk_norm: bool = Field(True, description="RMSNorm of every query and key head; Gemma 2 has none")
    query_pre_attn_scalar: Count = Field(256, le=WIDEST, description="scores are multiplied by its √, inverted")
    sliding_window: Count = Field(
        1024, le=MOST_TOKENS, description="a position of a local layer sees so many, itself and those before it"
    )
    layer_types: Annotated[tuple[LayerType, ...], Field(strict=False, min_length=1)] = Field(
        _PATTERN, description="of the layers, from the first on; a shorter list begins again"
    )
    rope_theta: _Theta = Field(1_000_000.0, description="of global layers")
    local_rope_theta: _Theta = Field(10_000.0, description="of local layers")
    rope_factor: Annotated[float, Field(ge=1, le=1e9)] = Field(
        1.0, description="linear RoPE scaling of global layers: how much slower they turn; 8 of the 4B and larger"
    )
    attn_logit_softcapping: Positive | None = Field(None, description="c of c·tanh(score / c): 50 of Gemma 2")
    final_logit_softcapping: Positive | None = Field(None, description="c of c·tanh(logits / c)")
    tie_word_embeddings: Literal[True] = True
    rms_norm_eps: Positive = Field(1e-6, le=1)

    @property
    def windows(self) -> tuple[Window, ...]:
        """Of each layer."""
        return windows_of(self.layer_types, causal_window(self.sliding_window), CAUSAL, self.num_hidden_layers)

    @property
    def window_counts(self) -> Mapping[Window, int]:
        return Counter(self.windows)

    @property
    def attention_heads(self) -> int:
        return self.num_attention_heads

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim

    @property
    def mlp_width(self) -> int:
        return self.intermediate_size

    @property
    def normalizes_heads(self) -> bool:
        return self.qk_norm

    @property
    def score_softcap(self) -> float | None:
        return self.attn_logit_softcapping
