"""`finetune:` what a fine-tuning starts from, and its examples."""

from typing import Annotated

from pydantic import Field

from megatrain.adapters.registry import AnyAdapter
from megatrain.base.section import FREE, REPORTED, Section
from megatrain.base.types import MOST_TOKENS, Count, NonNegative, Path, Positive
from megatrain.config.adversarial import AdversarialSection
from megatrain.config.validation_sets import ValidationSets, sets_of


class FinetuneSection(Section):
    """What training starts from, and what it is trained on; how a row of it reads is the task's."""

    base: Path = Field(description="a run, one of its checkpoints, or a Llama in Hugging Face's format")
    # the checkpoint knows its examples by their hash, wherever they lie
    train: Annotated[tuple[Path, ...], Field(strict=False, min_length=1), FREE] = Field(
        description="files, folders or globs of jsonl or parquet, as `data prepare` reads them"
    )
    validation: Annotated[ValidationSets[Path], REPORTED] = Field(
        (), description="likewise; or several sets, each with its own metrics: a mapping from names to such lists"
    )
    adapter: AnyAdapter | None = Field(None, description="what is trained instead of the base's own weights")
    train_layers: NonNegative | None = Field(
        None,
        description="only the last so many layers are trained, and the head; 0: the head; default: the whole model",
    )
    neftune: Annotated[float, Field(ge=0, le=1000), REPORTED] = Field(
        0.0, description="alpha of uniform noise on embedded tokens, such as 5: alpha / sqrt(tokens * hidden_size)"
    )
    adversarial: Annotated[AdversarialSection | None, REPORTED] = Field(
        None, description="a second pass over each example, its embedded tokens perturbed against the model"
    )
    r_drop: Annotated[float, Field(ge=0, le=1000), REPORTED] = Field(
        0.0, description="alpha of R-Drop, such as 4: two passes under dropout over each example, drawn together"
    )
    max_epochs: Annotated[Positive, REPORTED] = Field(
        50.0, description="a run that would read the examples more often is refused; from 10 on it is warned of"
    )
    sequence_length: Count | None = Field(
        None, le=MOST_TOKENS, description="default: the base's; 4096 where a pretrained one has more"
    )

    @property
    def validation_sets(self) -> dict[str, tuple[str, ...]]:
        """By name; that of a list is ""."""
        return sets_of(self.validation)
