"""`task:` of supervised fine-tuning: how a row of the examples reads."""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.section import REPORTED
from megatrain.base.types import Path
from megatrain.tasks.loss_section import TokenLossSection


class SFTSection(TokenLossSection):
    """Prompt and response pairs, and dialogues; the loss is on responses, and on what the assistant says."""

    name: Literal["sft"] = "sft"
    prompt_field: Path = Field("prompt", description="dots name a field within a field: data.question")
    response_field: Path = "response"
    messages_field: Path = Field("messages", description="read with the tokenizer's chat template")
    # another value is other examples, which a checkpoint knows by their hash
    train_on: Annotated[Literal["assistant_turns", "last_turn"], REPORTED] = Field(
        "assistant_turns", description="of dialogues: every turn of the assistant, or only the message they end with"
    )
    system_prompt: str | None = Field(
        None, min_length=1, description="in front of dialogues that have no system message of their own"
    )
    special_tokens: Literal["parse", "text"] = Field(
        "parse", description="text: special tokens that an example spells out, such as <|im_start|>, are characters"
    )
    truncation: Literal["cut", "drop", "error"] = Field(
        "cut", description="of examples longer than a sequence: cut the prompt's start, drop them, or refuse them"
    )
