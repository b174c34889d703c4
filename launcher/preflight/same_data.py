"""Of the preflight, data that is read twice: validation on what was trained on, a source that is named twice."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.preflight.finding import Finding
from megatrain.base.errors import DataError
from megatrain.base.files import open_regular

_CHUNK = 1 << 20


def check_same(train: Sequence[tuple[str, str, str]], validation: Sequence[tuple[str, str, str]]) -> Iterator[Finding]:
    """Warnings.

    Args:
        train, validation: (field, path, what identifies the content), one for each source.
    """
    seen: dict[str, tuple[str, str]] = {}
    for field, path, content in train:
        if content in seen:
            where, other = seen[content]
            text = f"is the same data as {where} ({other}): it is read twice as often."
            yield Finding("warning", f"{field}: {path}: {text}")
        seen.setdefault(content, (field, path))
    for field, path, content in validation:
        if content in seen:
            where, other = seen[content]
            text = f"is the same data as {where} ({other}): its loss will not tell how well the model does on new text."
            yield Finding("warning", f"{field}: {path}: {text}")


def check_same_files(
    train: Sequence[str], validation: Sequence[str], field: str = "finetune.validation"
) -> Iterator[Finding]:
    """The same for files of examples, by their bytes; of files of which no other has the size, nothing is read.

    Args:
        field: that names `validation`.
    """
    named = [
        *((f"finetune.train.{number}", path) for number, path in enumerate(train)),
        *((f"{field}.{number}", path) for number, path in enumerate(validation)),
    ]
    sizes = [_size(path) for _, path in named]
    files = [
        (name, path, content)
        for (name, path), size in zip(named, sizes, strict=True)
        if size and sizes.count(size) > 1 and (content := _hash(path))
    ]
    yield from check_same(
        [file for file in files if file[0].startswith("finetune.train")],
        [file for file in files if file[0].startswith(f"{field}.")],
    )


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size if Path(path).is_file() else 0
    except (OSError, ValueError):
        return 0  # reported elsewhere


def _hash(path: str) -> str:
    digest = hashlib.sha256()
    try:
        with open_regular(Path(path), DataError) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except (OSError, DataError):
        return ""  # reported elsewhere
    return digest.hexdigest()
