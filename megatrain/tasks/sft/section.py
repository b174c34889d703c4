"""`task:` of supervised fine-tuning: how a row of the examples reads."""

from typing import Literal

from pydantic import Field

from megatrain.base.types import Path
from megatrain.tasks.loss_section import TokenLossSection


class SFTSection(TokenLossSection):
    """Prompt and response pairs; the loss is on the response only."""

    name: Literal["sft"] = "sft"
    prompt_field: Path = Field("prompt", description="dots name a field within a field: data.question")
    response_field: Path = "response"
    messages_field: Path = Field("messages", description="read with the tokenizer's chat template")
    special_tokens: Literal["parse", "text"] = Field(
        "parse", description="text: special tokens that an example spells out, such as <|im_start|>, are characters"
    )
    truncation: Literal["cut", "drop", "error"] = Field(
        "cut", description="of examples longer than a sequence: cut the prompt's start, drop them, or refuse them"
    )
