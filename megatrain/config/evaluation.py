"""`evaluation:` when validation data is read, and how much."""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import MOST_TOKENS, Count

TextMetric = Literal["exact_match", "f1", "bleu", "chrf", "rouge"]
REPORTED_AS: dict[TextMetric, tuple[str, ...]] = {  # names of what each measures
    "exact_match": ("generated_exact_match",),
    "f1": ("generated_f1",),
    "bleu": ("bleu",),
    "chrf": ("chrf",),
    "rouge": ("rouge1", "rouge2", "rougeL"),
}


class GenerateSection(Section):
    """Responses that the model generates to prompts of the validation, compared with those that are there."""

    metrics: Annotated[tuple[TextMetric, ...], Field(strict=False, min_length=1)] = Field(
        description="exact_match and f1 (as SQuAD), bleu and chrf (sacrebleu), rouge (rouge-score)"
    )
    examples: Count = Field(64, description="the first of each set of finetune.validation, at most")
    max_new_tokens: Count = Field(128, le=MOST_TOKENS, description="of a response, at most")


class EvaluationSection(Section):
    interval_steps: Count = 500
    at_start: bool | None = Field(
        None, description="evaluate before the first step, too; default: of a run that starts from another's weights"
    )
    sequences: Count = Field(256, description="validation sequences an evaluation reads of each set, at most")
    generate: GenerateSection | None = Field(None, description="of task sft: metrics of generated responses")
