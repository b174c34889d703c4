"""Copies of what a run takes from elsewhere, made before it starts: tokenizer, chat template, and what its base says of
itself. What they are is in megatrain/run/inputs.py.
"""

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from megatrain.base.errors import DataError, MegatrainError
from megatrain.base.files import read_bytes, write_json
from megatrain.config import Config, FinetuneConfig, PretrainConfig
from megatrain.data.folder.hashed_files import write_bytes
from megatrain.data.folder.manifest import read_manifest
from megatrain.data.text.tokenizer_files import CLASS, FILE_LIMIT, TOKENIZER_CONFIG, Files, read_tokenizer
from megatrain.data.text.vocabulary import parse_vocabulary
from megatrain.huggingface.base_model import base_positions, fingerprints, read_base
from megatrain.run.directory import RunDir
from megatrain.run.inputs import TOKENIZER, Inputs, Kept, KeptBase, own_tokenizer


def keep_inputs(run: RunDir, config: Config) -> None:
    """Copy into a run that has not begun what it takes from elsewhere.

    Args:
        config: resolved.

    Raises:
        DataError, PreflightError, CheckpointError: something cannot be read or written.
    """
    tokenizer = _tokenizer_of(config)
    base = _base_of(name) if (name := _base_name(config)) else None
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
            kept = Kept(
                path=str(own), files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            )
        elif found := _tokenizer_of(config):
            kept = Kept(path=found[0], files=_write(run.tokenizer, found[1]))
    if name := _base_name(config):
        with suppress(MegatrainError):
            kept_base = _write_base(run, _base_of(name))
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


def _base_name(config: Config) -> str | None:
    if isinstance(config, FinetuneConfig):
        return config.finetune.base
    return config.continued.base if config.continued is not None else None


def _base_of(base: str) -> _Base:
    return _Base(base, read_base(base), fingerprints(base), base_positions(base))


def _write_base(run: RunDir, base: _Base) -> KeptBase:
    files = _write(run.base, base.files)
    return KeptBase(path=base.path, files=files, weights=base.weights, positions=base.positions)


def _write(folder: Path, files: Files) -> dict[str, str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
    return {name: write_bytes(folder / name, content).sha256 for name, content in files.items()}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
