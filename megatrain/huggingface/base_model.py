"""What a fine-tuning may start from, a run or a model in Hugging Face's format: what it says of itself, and what tells
its weights from others. Free of torch.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatrain.base.errors import CheckpointError, DataError
from megatrain.base.files import open_regular, parse_json, read_bytes, reason
from megatrain.data.text.tokenizer_files import Files
from megatrain.huggingface.config_json import CONFIG, GENERATION_CONFIG, is_pretrained, read_pretrained
from megatrain.model.huggingface_config import CONFIG_LIMIT
from megatrain.run.directory import MANIFEST, RunDir, locate
from megatrain.run.inputs import base_run, load_run, own_base, own_positions, read_inputs

_SAMPLE = 1 << 20  # bytes at the start, middle and end of a file of weights


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


def base_positions(base: str) -> int:
    """The longest sequence, in tokens, that a base was made for; of a run, what it or its own base was trained on.

    Raises:
        ConfigError, DataError: it cannot be read.
    """
    if is_pretrained(Path(base)):
        return read_pretrained(Path(base))[1]
    run = base_run(base)
    return own_positions(run, load_run(run)) if run.config.exists() else 0


def fingerprints(base: str) -> list[str]:
    """What tells a base's weights from others: of a run, each checkpoint's; of a pretrained model, one for all files.

    A file of weights is known by its size, and by a MiB at its start, middle and end: as quick for 100 GB as for 1 MB.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return [sha256 for sha256, _ in _weights_at(Path(base))]


def find_base(checkpoint: Path, path: str, sha256: str, also: Iterable[str] = ()) -> Path:
    """The folder whose weights a checkpoint refers to.

    Args:
        path: where they lay when it was written.
        also: runs or folders that may hold them now.

    Raises:
        CheckpointError: none of these holds them.
    """
    others = []
    for place in dict.fromkeys((path, *also)):
        folder = Path(place)
        there = is_pretrained(folder) or (locate(folder)[1] or locate(folder)[0].checkpoints).is_dir()
        for found, weights in _weights_at(folder) if there else ():
            if found == sha256:
                return weights
            others.append(place)
    state = "is not what it was (SHA-256 differs)" if path in others else "is not there"
    elsewhere = next((f", and {place} holds others (SHA-256 differs)" for place in others if place != path), "")
    raise CheckpointError(
        f"{checkpoint}: holds trained weights only; the rest are those of {path}, which {state}{elsewhere}. "
        "Restore it, or name in the run's finetune.base where it is now."
    )


def _weights_at(folder: Path) -> Iterator[tuple[str, Path]]:
    """Fingerprints, and the folders that they are of."""
    if is_pretrained(folder):
        digest = hashlib.sha256()
        for file in sorted(folder.glob("*.safetensors")):
            digest.update(_sample(file))
        yield digest.hexdigest(), folder
        return
    run, checkpoint = locate(folder)
    for one in [run.step(step) for step in run.steps()] if checkpoint is None else [checkpoint]:
        content = read_bytes(one / MANIFEST, limit=1 << 30, error=CheckpointError)
        yield hashlib.sha256(content).hexdigest(), one


def is_same_base(run: RunDir, base: str) -> bool:
    """Whether this is what the run was started from; of a run that is older than the record of it, anything may be.

    Raises:
        CheckpointError, DataError: it cannot be read.
    """
    inputs = read_inputs(run)
    if inputs is None or inputs.base is None:
        return True
    return base == inputs.base.path or bool(set(inputs.base.weights) & set(fingerprints(base)))


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
