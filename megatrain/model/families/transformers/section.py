"""`model:` of any causal language model of `transformers`: its configuration, and what was found of it. No torch."""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from megatrain.base.section import Section
from megatrain.base.types import MOST_TOKENS, WIDEST, Count, Path
from megatrain.model.architecture import ModelSection
from megatrain.model.parameter_row import Kind

# They follow from the configuration, and are never given by hand.
FOLLOWS = (
    "num_hidden_layers",
    "hidden_size",
    "tie_word_embeddings",
    "initializer_range",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
)


def as_json(value: Any) -> Any:
    """Text, in which null stays what it is, and which can be compared."""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


class Weight(Section):
    """One weight of the model, or the same weight of neighbouring layers."""

    name: str = Field(description="as transformers calls it; {} stands for the number of the layer")
    shape: Annotated[tuple[Count, ...], Field(strict=False)]
    kind: Annotated[Kind, Field(strict=False)]
    first: int | None = Field(None, description="of the layers that have it; default: it is outside of them")
    last: int | None = None
    init: Literal["normal", "uniform", "constant"] | None = Field(
        None, description="as the model's own code begins it; default: in a way that the table has no word for"
    )
    value: float = Field(0.0, description="standard deviation, bound or constant")
    vocabulary: bool = Field(False, description="its rows are those of the vocabulary")


class Description(Section):
    """What `describe.py` finds of a model that it builds without memory."""

    architecture: str = Field(description="the class, as config.json names it")
    prefix: str = Field(description="what the bare model, without its head, leaves out of names")
    layers: str = Field(description="name of the list of layers")
    embedding: str = Field(description="name of the tokens' embedding")
    head: str
    tied: Annotated[tuple[str, ...], Field(strict=False)] = Field((), description="names of copies of tied weights")
    projects: bool = Field(description="logits are the head's product and nothing else: no loss needs all of them")
    takes_positions: bool
    mixes: str | None = Field(None, description="why documents of a sequence see each other; default: they do not")
    weights: Annotated[tuple[Weight, ...], Field(strict=False)]


class TransformersSection(ModelSection):
    """A causal language model that `transformers` knows, by the code that it has for it."""

    plan_is_rough: ClassVar = True
    norm: ClassVar = "layer"

    family: Literal["transformers"] = "transformers"
    path: Path | None = Field(None, description="a folder in Hugging Face's format, or a config.json; or:")
    configuration: Annotated[str, BeforeValidator(as_json)] = Field(
        "", description="what a config.json says: model_type, and fields of its class; the others are its defaults"
    )
    # all that follows is read from the configuration
    num_hidden_layers: Count = 1
    hidden_size: Count = 1
    num_attention_heads: Count = Field(1, le=WIDEST)
    num_key_value_heads: Count = Field(1, le=WIDEST)
    head_dim: Count = Field(1, le=WIDEST)
    intermediate_size: Count = Field(1, le=WIDEST)
    max_position_embeddings: Count | None = Field(None, le=MOST_TOKENS)
    description: Description | None = None

    @model_validator(mode="before")
    @classmethod
    def _vocabulary_of_the_configuration(cls, given: Any) -> Any:
        said = given.get("configuration") if isinstance(given, dict) else None
        rows = said.get("vocab_size") if isinstance(said, dict) else None
        return {"vocab_size": rows, **given} if isinstance(rows, int) else given

    @model_validator(mode="after")
    def _configuration_is_said_once(self) -> Self:
        if self.description is not None:
            return self
        if (self.path is None) == (not self.configuration):
            raise ValueError("give model.path or model.configuration, one of them")
        if given := [name for name in FOLLOWS if name in self.model_fields_set]:
            raise ValueError(f"model.{given[0]} follows from the configuration: give it in model.configuration")
        if self.configuration:
            self.configured  # noqa: B018 - raises what is wrong with it
        return self

    @property
    def configured(self) -> dict[str, Any]:
        """The configuration, parsed. Raises ValueError."""
        try:
            value = json.loads(self.configuration)
        except ValueError:
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("model_type"), str):
            raise ValueError("model.configuration must have model_type: what transformers calls the architecture")
        return value

    @property
    def described(self) -> Description:
        """Raises ValueError before `complete` has been called."""
        if self.description is None:
            raise ValueError("model.description is not resolved yet")
        return self.description

    @property
    def attention_heads(self) -> int:
        return self.num_attention_heads

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads

    @property
    def head_size(self) -> int:
        return self.head_dim

    @property
    def mlp_width(self) -> int:
        return self.intermediate_size

    @property
    def longest_sequence(self) -> int | None:
        """What its configuration says: whether positions are learned or computed, nobody knows."""
        return self.max_position_embeddings

    @property
    def outer_names(self) -> tuple[str, str]:
        return f"model.{self.described.embedding}.weight", f"model.{self.described.head}.weight"

    @property
    def names_vocabulary(self) -> bool:
        return self.path is not None

    @property
    def makes_all_logits(self) -> bool:
        return self.description is not None and not self.description.projects
