"""`model:` of the Llama family."""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import MOST_TOKENS, WIDEST, Count, Positive, Rate
from megatrain.model.architecture import ModelSection


class RopeScaling(Section):
    """Slower rotation of the slow channels, for sequences longer than a model was first trained on: as Llama 3.1."""

    factor: Annotated[float, Field(ge=1, le=1e9)] = Field(description="how much slower the slowest channels turn")
    low_freq_factor: Rate = Field(1.0, description="channels that turn less often in the original length: slowed")
    high_freq_factor: Rate = Field(4.0, description="channels that turn more often in it: as they were")
    original_max_position_embeddings: Count = Field(le=MOST_TOKENS, description="tokens of that original length")


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
