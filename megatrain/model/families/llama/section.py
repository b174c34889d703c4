"""`model:` of the Llama family."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.types import MOST_TOKENS, WIDEST, Count, Positive
from megatrain.model.architecture import ModelSection
from megatrain.model.rope import RopeScaling
from megatrain.model.window import CAUSAL, LayerType, Window, causal_window, windows_of


class LlamaSection(ModelSection):
    """A decoder-only Transformer of the Llama family."""

    family: Literal["llama"] = "llama"
    num_attention_heads: Count = Field(le=WIDEST)
    num_key_value_heads: Count | None = Field(
        None, le=WIDEST, description="grouped-query attention; default: one per head"
    )
    head_dim: Count | None = Field(None, le=WIDEST, description="default: hidden_size / num_attention_heads")
    intermediate_size: Count = Field(le=WIDEST, description="width inside the SwiGLU MLP")
    rope_theta: Annotated[float, Field(ge=1, le=1e15)] = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: Positive = Field(1e-5, le=1)
    attention_bias: bool = Field(False, description="biases on query, key and value, not on the output: as Qwen2")
    qk_norm: bool = Field(False, description="RMSNorm of every query and key head before the rotation: as Qwen3")
    attn_logit_softcapping: Positive | None = Field(None, description="c of c·tanh(score / c): as Gemma 2")
    final_logit_softcapping: Positive | None = Field(None, description="c of c·tanh(logit / c): as Gemma 2")
    sliding_window: Count | None = Field(
        None, le=MOST_TOKENS, description="a position sees so many, itself and those before it: as Mistral"
    )
    layer_types: Annotated[tuple[LayerType, ...], Field(strict=False, min_length=1)] | None = Field(
        None,
        description="of the layers, from the first on; a shorter list begins again. Default: sliding_attention where "
        "sliding_window is set",
    )

    @property
    def windows(self) -> tuple[Window, ...]:
        """Of each layer."""
        local = CAUSAL if self.sliding_window is None else causal_window(self.sliding_window)
        return windows_of(self.layer_types or ("sliding_attention",), local, CAUSAL, self.num_hidden_layers)

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
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def mlp_width(self) -> int:
        return self.intermediate_size

    @property
    def normalizes_heads(self) -> bool:
        return self.qk_norm

    @property
    def score_softcap(self) -> float | None:
        return self.attn_logit_softcapping
