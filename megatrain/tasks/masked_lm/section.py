"""`task:` of masked language modelling."""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.section import REPORTED
from megatrain.tasks.loss_section import TokenLossSection

_Share = Annotated[float, Field(ge=0, le=1)]


class MaskedLMSection(TokenLossSection):
    """Hidden tokens of prepared data, for a bidirectional model (arXiv 1810.04805, section 3.1)."""

    name: Literal["masked_lm"] = "masked_lm"
    mask_rate: Annotated[float, Field(gt=0, lt=1), REPORTED] = Field(
        0.15, description="predictions per token: 0.15 of BERT, 0.3 of ModernBERT"
    )
    mask_share: Annotated[_Share, REPORTED] = Field(0.8, description="of them: shown as the mask token")
    random_share: Annotated[_Share, REPORTED] = Field(
        0.1, description="of them: shown as another token; the rest is shown as it is"
    )
    whole_words: Annotated[bool, REPORTED] = Field(False, description="all tokens of a word are predicted together")
    mask_token: str | None = Field(
        None, min_length=1, description="of the tokenizer; default: the one that it names, or [MASK] or <mask>"
    )
