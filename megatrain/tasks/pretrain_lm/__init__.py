"""Pretraining of a causal language model: the next token of prepared data."""

from typing import Literal

from megatrain.tasks.loss_section import TokenLossSection
from megatrain.tasks.registry import TASKS, TaskSpec


class PretrainLMSection(TokenLossSection):
    name: Literal["pretrain_lm"] = "pretrain_lm"


TASKS.register(
    "pretrain_lm",
    TaskSpec(
        section=PretrainLMSection,
        task="megatrain.tasks.pretrain_lm.task:PretrainLM",
        trains="pretrain",
        metrics=lambda section: ("validation_loss", "perplexity", "bits_per_byte"),
    ),
)
