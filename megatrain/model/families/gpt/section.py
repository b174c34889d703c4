"""`model:` of the GPT family."""

from typing import ClassVar, Literal

from pydantic import Field

from megatrain.base.types import MOST_TOKENS, WIDEST, Count, Positive
from megatrain.model.architecture import ModelSection


class GPTSection(ModelSection):
    """A decoder-only Transformer as GPT-2."""

    norm: ClassVar = "layer"

    family: Literal["gpt"] = "gpt"
    num_attention_heads: Count = Field(le=WIDEST)
    intermediate_size: Count | None = Field(
        None, le=WIDEST, description="width inside the MLP; default: 4 · hidden_size"
    )
    max_position_embeddings: Count = Field(
        1024, le=MOST_TOKENS, description="learned positions: the longest sequence, in tokens"
    )
    tie_word_embeddings: bool = True
    layer_norm_eps: Positive = Field(1e-5, le=1)

    @property
    def attention_heads(self) -> int:
        return self.num_attention_heads

    @property
    def mlp_width(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def longest_sequence(self) -> int:
        """In tokens."""
        return self.max_position_embeddings
