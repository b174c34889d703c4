"""`model:` of the BERT family."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from megatrain.base.types import MOST_TOKENS, WIDEST, Count, NonNegative, Positive
from megatrain.model.architecture import ModelSection
from megatrain.model.window import BIDIRECTIONAL, Window


class BertSection(ModelSection):
    """An encoder as BERT or RoBERTa, with the head of masked language modelling."""

    is_causal: ClassVar[bool] = False
    norm: ClassVar = "layer"

    family: Literal["bert"] = "bert"
    num_attention_heads: Count = Field(le=WIDEST)
    intermediate_size: Count | None = Field(
        None, le=WIDEST, description="width inside the MLP; default: 4 · hidden_size"
    )
    max_position_embeddings: Count = Field(
        512, le=MOST_TOKENS, description="learned positions; the longest sequence has position_offset fewer tokens"
    )
    position_offset: NonNegative = Field(
        0, le=WIDEST, description="of the first position: 0 of BERT, 2 of RoBERTa, whose padding token has id 1"
    )
    model_type: Literal["bert", "roberta"] | None = Field(
        None, description="of transformers, as what it is exported; default: bert where position_offset is 0"
    )
    type_vocab_size: Count = Field(
        2, le=WIDEST, description="token types: all tokens have the first, but those of an example's second text"
    )
    tie_word_embeddings: Literal[True] = True
    layer_norm_eps: Positive = Field(1e-12, le=1)

    @property
    def attention_heads(self) -> int:
        return self.num_attention_heads

    @property
    def mlp_width(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def longest_sequence(self) -> int:
        """In tokens."""
        return self.max_position_embeddings - self.position_offset

    @property
    def is_roberta(self) -> bool:
        return self.model_type == "roberta" or (self.model_type is None and self.position_offset > 0)

    @property
    def padding_id(self) -> int | None:
        """Behind which a RoBERTa of `transformers` begins to count positions."""
        return self.position_offset - 1 if self.is_roberta else None

    @property
    def token_types(self) -> int:
        return self.type_vocab_size

    @property
    def window_counts(self) -> Mapping[Window, int]:
        return {BIDIRECTIONAL: self.num_hidden_layers}
