"""What a run takes from elsewhere, kept in its folder: tokenizer and chat template, and what a pretrained base says of
itself. From then on the run needs neither place: it resumes, generates, exports and is a base from its own copies.

RUN/
    tokenizer/     tokenizer.json, tokenizer_config.json, special_tokens_map.json, the chat templates, …
    base/          config.json and generation_config.json of the pretrained model that a fine-tuning started from
    inputs.json    where they came from, their SHA-256, and fingerprints of the base's weights
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from megatrain.base.errors import DataError
from megatrain.base.files import read_bytes, read_model
from megatrain.config import Config, TokenizerSection
from megatrain.config.file import load_own_config
from megatrain.config.resolved import ResolvedRun, resolved
from megatrain.run.directory import RunDir, locate

TOKENIZER = "tokenizer.json"
_FILE_LIMIT = 512 << 20  # bytes of a copy
_RECORD_LIMIT = 8 << 20  # bytes of inputs.json

Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_Name = Annotated[str, Field(pattern=r"\A(additional_chat_templates/)?[A-Za-z0-9_][A-Za-z0-9._-]*\z", max_length=200)]


class Kept(BaseModel):
    """Files that were copied from one place."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    path: str
    files: dict[_Name, Sha256]


class KeptBase(Kept):
    weights: list[Sha256]  # of a run: of each of its checkpoints; of a pretrained model: one for all its files
    positions: Annotated[int, Field(ge=0)] = 0  # the longest sequence, in tokens, that it was made for


class Inputs(BaseModel):
    """The content of RUN/inputs.json."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    format: Literal[1] = 1
    tokenizer: Kept | None = None
    base: KeptBase | None = None


def load_run(run: RunDir, *, warn: Callable[[str], None] | None = None, verify: bool = False) -> ResolvedRun:
    """The run's configuration, with its own copy as tokenizer.path.

    Args:
        warn: called with a line where the run is older than such copies, and the path in its configuration is used.
        verify: compare the copy with its hash.

    Raises:
        ConfigError: the configuration is not there, is not one, or was never resolved.
        DataError: the copy is not what was copied.
    """
    config = resolved(load_own_config(run.config), run.config)
    if own := own_tokenizer(run, verify=verify):
        return config.model_copy(update={"tokenizer": TokenizerSection(path=str(own))})
    if config.tokenizer is not None and warn is not None:
        warn(
            f"{run}: has no copy of its tokenizer; {config.tokenizer.path} is used as it is now. "
            f"Resuming the run makes a copy; or put its files into {run.tokenizer}."
        )
    return config


def read_inputs(run: RunDir) -> Inputs | None:
    """What the run has copied; None for a run from before it did.

    Raises:
        DataError: the record is damaged.
    """
    if not run.inputs.exists():
        return None
    return read_model(run.inputs, Inputs, error=DataError, limit=_RECORD_LIMIT)


def own_tokenizer(run: RunDir, *, verify: bool = False) -> Path | None:
    """The folder of the run's own tokenizer; None where it has none.

    Raises:
        DataError: `verify`, and it is not what was copied.
    """
    if not (run.tokenizer / TOKENIZER).exists():
        return None
    inputs = read_inputs(run) if verify else None
    if inputs is not None and inputs.tokenizer is not None:
        _verified(run.tokenizer, inputs.tokenizer)
    return run.tokenizer


def own_base(run: RunDir) -> Mapping[str, bytes]:
    """What the pretrained base said of itself; nothing where the run had none, or is older than such copies.

    Raises:
        DataError: it is not what was copied.
    """
    inputs = read_inputs(run)
    return _verified(run.base, inputs.base) if inputs is not None and inputs.base is not None else {}


def kept_tokenizer_sha256(run: RunDir) -> str | None:
    """Of the tokenizer.json that the run began with; None where it has no record of it."""
    inputs = read_inputs(run)
    return inputs.tokenizer.files.get(TOKENIZER) if inputs is not None and inputs.tokenizer is not None else None


def base_run(base: str) -> RunDir:
    """The run that `finetune.base` names, directly or by one of its checkpoints."""
    return locate(Path(base))[0]


def own_positions(run: RunDir, config: Config) -> int:
    """The longest sequence, in tokens, that a run or its base was trained on."""
    inputs = read_inputs(run)
    return max(config.sequence_length, inputs.base.positions if inputs is not None and inputs.base is not None else 0)


def _verified(folder: Path, kept: Kept) -> Mapping[str, bytes]:
    found = {}
    for name, expected in kept.files.items():
        found[name] = read_bytes(folder / name, limit=_FILE_LIMIT, error=DataError)
        if hashlib.sha256(found[name]).hexdigest() != expected:
            raise DataError(
                f"{folder / name}: checksum mismatch: it is not what the run began with (SHA-256 in inputs.json). "
                f"Restore it; it came from {kept.path}."
            )
    return found
