"""state.json: what a checkpoint holds beside its tensors. No torch."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from megatrain.base.errors import CheckpointError
from megatrain.base.files import read_model
from megatrain.checkpoint.best import Best
from megatrain.config import AUTO
from megatrain.config.chosen import AnyModel
from megatrain.config.file import load_extensions_of
from megatrain.run.directory import RunDir

STATE = "state.json"
WEIGHT = "weight"  # what keys of weights begin with; those of optimizer state have its names
STATE_FORMAT = 2
_LIMIT = 1 << 20  # bytes of the file: a loader's state has 4 KiB
_MOST_LAYERS = 100_000
Parameters = Literal["all", "trained"]  # of a checkpoint: with frozen ones, or what training changes only
_Number = Annotated[int, Field(ge=0, le=10**15)]
_Triple = Annotated[list[_Number | str], Field(min_length=3, max_length=3)]
_Batch = Annotated[list[_Number], Field(min_length=3, max_length=3)]


class LoaderState(BaseModel):
    """Where the data stands, and the name of all that decides which samples came before. Each loader has further fields
    of its own (data/ordering/position.py, data/loading/sequential.py, data/examples/loader.py)."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    position: _Number | None = None  # samples consumed; None: of weights that no run resumes from
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    sequence_length: _Number | None = None
    order_version: _Number | None = None
    sources: list[str | list[str | float]] | None = None
    stages: list[_Triple] | None = None
    quarantine: list[_Triple] | None = None
    transform: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> "LoaderState":
        if self.order_version is not None and None in (self.sources, self.stages, self.quarantine):
            raise ValueError("sources, stages and quarantine must be there with order_version")
        return self


class Counts(BaseModel):
    """How far the run is: what a login node asks of state.json."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    step: _Number  # optimizer steps done
    loader: LoaderState | None = None  # of the next batch
    batches: list[_Batch] = []  # step, samples and size where each global batch size began: checkpoint/progress.py
    early_stopping: Best | None = None  # of a run that has it

    def facts(self) -> dict[str, Any]:
        """As it was written."""
        return self.model_dump(mode="json", exclude_unset=True)


class BaseReference(BaseModel):
    """The weights that a checkpoint of trained ones goes with."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    path: str  # a checkpoint, or the folder of a model in Hugging Face's format; absolute
    sha256: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]  # as `huggingface.base_model.fingerprints`


class State(Counts):
    """The content of state.json."""

    model_config = ConfigDict(extra="forbid")

    # 1: all parameters were trained, and saved; the first version had no such field. 2: says which are saved.
    format: int = Field(1, ge=1, le=STATE_FORMAT)
    model: AnyModel
    seed: int = Field(0, ge=-(2**63), lt=2**64)
    parameters: Parameters = "all"
    base: BaseReference | None = None  # of "trained"

    @model_validator(mode="after")
    def _sane(self) -> "State":
        if self.model.vocab_size == AUTO or self.model.num_hidden_layers > _MOST_LAYERS:
            raise ValueError(f"model: must have a vocabulary, and at most {_MOST_LAYERS:,} layers")
        return self

    def to_json(self) -> dict[str, Any]:
        """The content of a new state.json."""
        left_out = {"early_stopping"} if self.early_stopping is None else None
        found = self.model_dump(mode="json", exclude=left_out)
        return found | {"format": STATE_FORMAT, "loader": self.loader_state()}

    def loader_state(self) -> dict[str, Any]:
        """As the loader gave it; empty where there is none."""
        return self.loader.model_dump(mode="json", exclude_unset=True) if self.loader else {}


def read_counts(folder: Path) -> Counts:
    """Raises CheckpointError as `read_state`, but looks at nothing else of the file."""
    return read_model(folder / STATE, Counts, error=CheckpointError, limit=_LIMIT)


def read_state(folder: Path) -> State:
    """Of a checkpoint, or of a copy of one beside which its run's config.yaml lies as it did.

    Raises:
        CheckpointError: it is absent, or not as megatrain writes it.
        ConfigError: the run's extensions, which its model may be of, cannot be imported.
    """
    load_extensions_of(RunDir(folder.parent.parent).config)
    return read_model(folder / STATE, State, error=CheckpointError, limit=_LIMIT)
