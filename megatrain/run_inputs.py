"""What a run takes from elsewhere, kept in its folder: tokenizer and chat template, and what a pretrained base says of
itself. From then on the run needs neither place: it resumes, generates, exports and is a base from its own copies.

RUN/
    tokenizer/     tokenizer.json, tokenizer_config.json, special_tokens_map.json, the chat template
    base/          config.json and generation_config.json of the pretrained model that a fine-tuning started from
    inputs.json    where they came from, their SHA-256, and fingerprints of the base's weights
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from megatrain.base.errors import CheckpointError, ConfigError, DataError, MegatrainError
from megatrain.base.files import open_regular, parse_json, read_bytes, read_model, reason, write_json
from megatrain.config import Config, FinetuneConfig, PretrainConfig, TokenizerSection
from megatrain.config.file import load_config
from megatrain.data.folder.files import write_bytes
from megatrain.data.folder.manifest import TOKENIZER, read_manifest
from megatrain.data.text.tokenizer_files import (
    CLASS,
    FILE_LIMIT,
    TOKENIZER_CONFIG,
    Files,
    read_tokenizer,
)
from megatrain.data.text.vocabulary import parse_vocabulary
from megatrain.huggingface.config_json import CONFIG, CONFIG_LIMIT, GENERATION_CONFIG, is_pretrained, read_pretrained
from megatrain.run.directory import MANIFEST, RunDir, locate

_SAMPLE = 1 << 20  # bytes at the start, middle and end of a file of weights

_Hash = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_Name = Annotated[str, Field(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9._-]*\z", max_length=200)]


class Kept(BaseModel):
    """Files that were copied from one place."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    path: str
    files: dict[_Name, _Hash]


class KeptBase(Kept):
    weights: list[_Hash]  # of a run: of each of its checkpoints; of a pretrained model: one for all its files
    positions: Annotated[int, Field(ge=0)] = 0  # the longest sequence, in tokens, that it was made for


class Inputs(BaseModel):
    """The content of RUN/inputs.json."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    format: Literal[1] = 1
    tokenizer: Kept | None = None
    base: KeptBase | None = None


def load_run(run: RunDir, *, warn: Callable[[str], None] | None = None, verify: bool = False) -> Config:
    """The run's resolved configuration, with its own copy as tokenizer.path.

    Args:
        warn: called with a line where the run is older than such copies, and the path in its configuration is used.
        verify: compare the copy with its hash.

    Raises:
        ConfigError: the configuration is not there, or not one.
        DataError: the copy is not what was copied.
    """
    config = load_config(run.config)
    if isinstance(config, FinetuneConfig) and (config.model is None or config.finetune.sequence_length is None):
        raise ConfigError(f"{run.config}: is not of a run that was started: model and sequence length are open")
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
    return read_model(run.inputs, Inputs, error=DataError, limit=CONFIG_LIMIT)


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


def own_base(run: RunDir) -> Files:
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


def read_base(path: str) -> Files:
    """What a base says of itself: config.json and generation_config.json of a pretrained model, or a run's copies.

    Raises:
        DataError: a file is not what its name says.
    """
    folder = Path(path)
    if not is_pretrained(folder):
        return own_base(base_run(path))
    found = {}
    for name in (CONFIG, GENERATION_CONFIG):
        if (file := folder / name).exists():
            found[name] = read_bytes(file, limit=CONFIG_LIMIT, error=DataError)
            if not isinstance(parse_json(found[name], file, DataError), dict):
                raise DataError(f"{file}: must be a JSON object")
    return found


def base_run(base: str) -> RunDir:
    """The run that `finetune.base` names, directly or by one of its checkpoints."""
    return locate(Path(base))[0]


def base_positions(base: str) -> int:
    """The longest sequence, in tokens, that a base was made for; of a run, what it or its own base was trained on.

    Raises:
        ConfigError, DataError: it cannot be read.
    """
    if is_pretrained(Path(base)):
        return read_pretrained(Path(base))[1]
    run = base_run(base)
    return own_positions(run, load_run(run)) if run.config.exists() else 0


def own_positions(run: RunDir, config: Config) -> int:
    """The longest sequence, in tokens, that a run or its base was trained on."""
    inputs = read_inputs(run)
    return max(config.sequence_length, inputs.base.positions if inputs is not None and inputs.base is not None else 0)


def fingerprints(base: str) -> list[str]:
    """What tells a base's weights from others: of a run, each checkpoint's; of a pretrained model, one for all files.

    A file of weights is known by its size, and by a MiB at its start, middle and end: as quick for 100 GB as for 1 MB.

    Raises:
        CheckpointError: a file cannot be read.
    """
    folder = Path(base)
    if is_pretrained(folder):
        digest = hashlib.sha256()
        for file in sorted(folder.glob("*.safetensors")):
            digest.update(_sample(file))
        return [digest.hexdigest()]
    run, checkpoint = locate(folder)
    checkpoints = [run.step(step) for step in run.steps()] if checkpoint is None else [checkpoint]
    manifests = [checkpoint / MANIFEST for checkpoint in checkpoints]
    return [_sha256(read_bytes(file, limit=1 << 30, error=CheckpointError)) for file in manifests]


def is_same_base(run: RunDir, base: str) -> bool:
    """Whether this is what the run was started from; of a run that is older than the record of it, anything may be.

    Raises:
        CheckpointError, DataError: it cannot be read.
    """
    inputs = read_inputs(run)
    if inputs is None or inputs.base is None:
        return True
    return base == inputs.base.path or bool(set(inputs.base.weights) & set(fingerprints(base)))


def keep_inputs(run: RunDir, config: Config) -> None:
    """Copy into a run that has not begun what it takes from elsewhere.

    Args:
        config: resolved.

    Raises:
        DataError, PreflightError, CheckpointError: something cannot be read or written.
    """
    tokenizer = _tokenizer_of(config)
    base = _base_of(config) if isinstance(config, FinetuneConfig) else None
    run.inputs.unlink(missing_ok=True)
    for folder in (run.tokenizer, run.base):
        shutil.rmtree(folder, ignore_errors=True)
    kept = Kept(path=tokenizer[0], files=_write(run.tokenizer, tokenizer[1])) if tokenizer else None
    kept_base = _write_base(run, base) if base else None
    _record(run, kept, kept_base)


def keep_inputs_late(run: RunDir, config: Config) -> None:
    """The same for a run from before there were such copies: of what is still there. One that has them keeps them.

    Raises:
        DataError: a copy cannot be written.
    """
    if run.inputs.exists():
        return
    kept, kept_base = None, None
    with suppress(MegatrainError):
        if own := own_tokenizer(run):  # put there by hand
            files = read_tokenizer(str(own))
            kept = Kept(path=str(own), files={name: _sha256(content) for name, content in files.items()})
        elif found := _tokenizer_of(config):
            kept = Kept(path=found[0], files=_write(run.tokenizer, found[1]))
    if isinstance(config, FinetuneConfig):
        with suppress(MegatrainError):
            kept_base = _write_base(run, _base_of(config))
    _record(run, kept, kept_base)


def _record(run: RunDir, tokenizer: Kept | None, base: KeptBase | None) -> None:
    write_json(run.inputs, Inputs(tokenizer=tokenizer, base=base).model_dump(mode="json"))


def _tokenizer_of(config: Config) -> tuple[str, Files] | None:
    """Of a run that names none, the one in its prepared data, where that is on this machine."""
    if config.tokenizer is not None:
        return config.tokenizer.path, read_tokenizer(config.tokenizer.path)
    assert isinstance(config, PretrainConfig), "a fine-tuning has one"
    folder = config.data.train[0].path
    try:
        recipe = read_manifest(folder).recipe
        content = read_bytes(Path(folder) / TOKENIZER, limit=FILE_LIMIT, error=DataError)
        vocabulary = parse_vocabulary(content, folder)
    except MegatrainError:
        return None
    if vocabulary.sha256 != recipe.tokenizer_sha256:
        return None
    eos = next((token for token, number in vocabulary.ids.items() if number == recipe.eos_id), None)
    return folder, {TOKENIZER: content, TOKENIZER_CONFIG: _json({"tokenizer_class": CLASS, "eos_token": eos})}


class _Base(NamedTuple):
    path: str
    files: Files
    weights: list[str]
    positions: int


def _base_of(config: FinetuneConfig) -> _Base:
    base = config.finetune.base
    return _Base(base, read_base(base), fingerprints(base), base_positions(base))


def _write_base(run: RunDir, base: _Base) -> KeptBase:
    files = _write(run.base, base.files)
    return KeptBase(path=base.path, files=files, weights=base.weights, positions=base.positions)


def _write(folder: Path, files: Files) -> dict[str, str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return {name: write_bytes(folder / name, content).sha256 for name, content in files.items()}


def _verified(folder: Path, kept: Kept) -> Files:
    found = {}
    for name, expected in kept.files.items():
        found[name] = read_bytes(folder / name, limit=FILE_LIMIT, error=DataError)
        if _sha256(found[name]) != expected:
            raise DataError(
                f"{folder / name}: is not what the run began with (SHA-256 differs from inputs.json beside it). "
                f"Restore it; it came from {kept.path}."
            )
    return found


def _sample(file: Path) -> bytes:
    with open_regular(file, CheckpointError) as opened:
        try:
            size = os.fstat(opened.fileno()).st_size
            digest = hashlib.sha256(f"{file.name} {size}".encode())
            for start in (0, size // 2, max(0, size - _SAMPLE)):
                opened.seek(start)
                digest.update(opened.read(_SAMPLE))
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {reason(error)}") from None
    return digest.digest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
