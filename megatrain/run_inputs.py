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
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from megatrain import config_file
from megatrain.base.files import open_regular, parse_json, read_bytes, read_model, reason
from megatrain.config import Config, FinetuneConfig, PretrainConfig, TokenizerSection
from megatrain.data.folder.files import write_bytes
from megatrain.data.folder.manifest import TOKENIZER, read_manifest
from megatrain.data.text.vocabulary import parse_vocabulary
from megatrain.errors import CheckpointError, DataError, MegatrainError
from megatrain.model.config_json import CONFIG, CONFIG_LIMIT, GENERATION_CONFIG, is_pretrained
from megatrain.run_dir import MANIFEST, RunDir, parse_step, write_json

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
_COMPANIONS = (TOKENIZER_CONFIG, SPECIAL_TOKENS, "chat_template.jinja", "chat_template.json")  # of tokenizer.json
_FOREIGN = ("tokenizer.model", "tekken.json")  # what a folder without tokenizer.json may hold; see `tokenizer_import`
_CLASS = "PreTrainedTokenizerFast"  # of transformers: whatever tokenizer.json says
_TOKENIZER_LIMIT = 512 << 20  # bytes; the largest in use have about 35 MB
_COMPANION_LIMIT = 16 << 20
_SAMPLE = 1 << 20  # bytes at the start, middle and end of a file of weights

Files = Mapping[str, bytes]  # by name
_Hash = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_Name = Annotated[str, Field(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9._-]*\z", max_length=200)]


class Kept(BaseModel):
    """Files that were copied from one place."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    path: str
    files: dict[_Name, _Hash]


class KeptBase(Kept):
    weights: list[_Hash]  # of a run: of each of its checkpoints; of a pretrained model: one for all its files


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
    config = config_file.load(run.config)
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


def read_tokenizer(path: str) -> Files:
    """tokenizer.json (made from a foreign file, if need be) and what lies beside it, by name.

    Args:
        path: a folder, or the file.

    Raises:
        DataError: there is none, or one of the files is not what its name says.
        PreflightError: it is a SentencePiece model or tiktoken file, and their library is not installed.
    """
    file = tokenizer_file(path)
    content = read_bytes(file, limit=_TOKENIZER_LIMIT, error=DataError)
    found = {TOKENIZER: content}
    for name in _COMPANIONS:
        if (beside := file.with_name(name)).exists():
            found[name] = read_bytes(beside, limit=_COMPANION_LIMIT, error=DataError)
            if name.endswith(".json") and not isinstance(parse_json(found[name], beside, DataError), dict):
                raise DataError(f"{beside}: must be a JSON object")
    if content.lstrip()[:1] != b"{" or file.name in _FOREIGN:
        from megatrain.data.text.tokenizer import Tokenizer

        loaded = Tokenizer.load(file)
        said = json.loads(found.get(TOKENIZER_CONFIG, b"{}")) | {"tokenizer_class": _CLASS}
        said |= {"eos_token": loaded.eos_token, "pad_token": loaded.pad_token}
        found |= {TOKENIZER: loaded.content, TOKENIZER_CONFIG: _json(said)}
    parse_vocabulary(found[TOKENIZER], file)
    return found


def tokenizer_file(path: str) -> Path:
    """The file that a tokenizer.path means: in a folder, tokenizer.json, or else a foreign file of a usual name."""
    folder = Path(path)
    if not folder.is_dir():
        return folder
    names = (TOKENIZER, *_FOREIGN)
    return next((folder / name for name in names if (folder / name).exists()), folder / TOKENIZER)


def pad_token(files: Files) -> str | None:
    """The padding token that a tokenizer's files name, or else one of a usual name."""
    said = json.loads(files[TOKENIZER_CONFIG]).get("pad_token") if TOKENIZER_CONFIG in files else None
    text = said.get("content") if isinstance(said, dict) else said
    return text if isinstance(text, str) else None


def tokenizer_sha256(path: str) -> str:
    """SHA-256 of the tokenizer.json that `read_tokenizer` gives; raises as it does."""
    return _sha256(read_tokenizer(path)[TOKENIZER])


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
    path = Path(base)
    return RunDir(path.parent.parent if parse_step(path) is not None else path)


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
    run = base_run(base)
    one = parse_step(folder)
    manifests = [run.step(step) / MANIFEST for step in (run.steps() if one is None else [one])]
    return [_sha256(read_bytes(file, limit=1 << 30, error=CheckpointError)) for file in manifests]


def is_same_base(run: RunDir, base: str) -> bool | None:
    """Whether this is what the run was started from; None where the run is older than the record of it.

    Raises:
        CheckpointError, DataError: it cannot be read.
    """
    inputs = read_inputs(run)
    if inputs is None or inputs.base is None:
        return None
    return bool(set(inputs.base.weights) & set(fingerprints(base)))


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
    kept_base = KeptBase(path=base[0], files=_write(run.base, base[1]), weights=base[2]) if base else None
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
            path, files, weights = _base_of(config)
            kept_base = KeptBase(path=path, files=_write(run.base, files), weights=weights)
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
        content = read_bytes(Path(folder) / TOKENIZER, limit=_TOKENIZER_LIMIT, error=DataError)
        vocabulary = parse_vocabulary(content, folder)
    except MegatrainError:
        return None
    if vocabulary.sha256 != recipe.tokenizer_sha256:
        return None
    eos = next((token for token, number in vocabulary.ids.items() if number == recipe.eos_id), None)
    return folder, {TOKENIZER: content, TOKENIZER_CONFIG: _json({"tokenizer_class": _CLASS, "eos_token": eos})}


def _base_of(config: FinetuneConfig) -> tuple[str, Files, list[str]]:
    base = config.finetune.base
    return base, read_base(base), fingerprints(base)


def _write(folder: Path, files: Files) -> dict[str, str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return {name: write_bytes(folder / name, content).sha256 for name, content in files.items()}


def _verified(folder: Path, kept: Kept) -> Files:
    found = {}
    for name, expected in kept.files.items():
        found[name] = read_bytes(folder / name, limit=_TOKENIZER_LIMIT, error=DataError)
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
