"""Masked language modelling: hidden tokens of prepared data, for a bidirectional model."""

from collections.abc import Iterator
from typing import Any

from megatrain.tasks.masked_lm.section import MaskedLMSection
from megatrain.tasks.registry import TASKS, TaskSpec


def _issues(config: Any) -> Iterator[tuple[str, Any, str, str]]:
    section: MaskedLMSection = config.task
    if section.mask_share + section.random_share > 1:
        rule = f"and task.mask_share ({section.mask_share}) are more than 1 together"
        yield "task.random_share", section.random_share, rule, "What is left of 1 is shown as it is."
    if config.tokenizer is None:
        rule = "task masked_lm needs the tokenizer's mask token"
        yield "tokenizer", None, rule, "Add `tokenizer: {path: …}`: the one that the data was prepared with."
    for number, source in enumerate(config.data.train):
        if source.format != "prepared":
            fix = "Prepare it with `megatrain data prepare`."
            yield f"data.train.{number}.format", source.format, "task masked_lm reads prepared data only", fix


TASKS.register(
    "masked_lm",
    TaskSpec(
        section=MaskedLMSection,
        task="megatrain.tasks.masked_lm.task:MaskedLM",
        trains="pretrain",
        attention="bidirectional",
        issues=_issues,
        metrics=lambda section: ("validation_loss", "perplexity"),
        check_tokenizer="megatrain.tasks.masked_lm.vocabulary:check_tokenizer",
    ),
)
