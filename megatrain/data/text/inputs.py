"""Which files a user's words stand for: paths, folders, glob patterns, names of the Hub."""

import glob
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, Field

from megatrain.base.errors import DataError
from megatrain.base.files import open_regular, read_model, reason, sha256_file
from megatrain.data.folder.hashed_files import FileRecord
from megatrain.data.text.hub import HUB, HubDataset

INDEX_ENDING = ".idx"  # of Megatron's tokens, which lie in NAME.bin beside it
_SAVED = ("state.json", "dataset_info.json")  # in a folder that `datasets.save_to_disk` wrote
_SAVED_SPLITS = "dataset_dict.json"  # in one with a folder for each split
_STATE_BYTES = 64 << 20
# What lies beside data in folders of datasets and models, and is not data itself.
_SIDE_FILES = (
    *("readme", "readme.*", "license", "license.*", "changelog", "changelog.*", "citation.cff", "_success"),
    *("*.md5", "*.sha1", "*.sha256", "*.sha512", "*.crc", "md5sum*", "sha256sum*", "checksums.txt"),
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json", "metadata.json"),
    *("config.json", "*_config.json", "configs.json", "tokenizer.json", "special_tokens_map.json", "package.json"),
    *("_metadata", "_common_metadata", "*.py[co]", "*.lock"),
)

Input = Path | HubDataset


class Found(NamedTuple):
    """What is read, in order, and what lies in given folders but is not data."""

    inputs: list[Input]
    passed_over: list[Path]


class _DataFile(BaseModel):
    filename: str


class _SavedState(BaseModel):
    """state.json of `datasets.save_to_disk`, as far as it says where the rows are."""

    data_files: list[_DataFile] = Field(alias="_data_files")
    indices: list[_DataFile] | None = Field(default=None, alias="_indices_data_files")


def find_inputs(inputs: Sequence[str | Path]) -> Found:
    """What paths, folders (all files below, hidden ones skipped), glob patterns and names of the Hub stand for.

    Of tokens that Megatron prepared, NAME.idx stands for both files; a folder of `datasets.save_to_disk` for its rows.
    Each input's files are sorted by path, so that the order of documents does not depend on the file system. What is
    named twice is read once.

    Raises:
        DataError: an input stands for no file.
    """
    found: dict[Input, None] = {}
    passed_over: list[Path] = []
    for given in map(str, inputs):
        if given.startswith(HUB):
            found[HubDataset.parse(given)] = None
            continue
        try:
            files = _files_of(given, passed_over)
        except (OSError, ValueError) as error:  # ValueError: a NUL byte
            raise DataError(f"{given!r}: cannot be read: {reason(error)}") from None
        if not files:
            raise DataError(f"{given}: no such file, or no data below it. Give a file, a folder or a quoted glob.")
        found.update(dict.fromkeys(_index_of(file) for file in files))
    return Found(list(found), passed_over)


def records(inputs: Sequence[Input]) -> Iterator[FileRecord]:
    """What each input is now: its files' sizes and hashes, or the commit and files of a dataset of the Hub.

    Raises:
        DataError: an input cannot be read.
    """
    for given in inputs:
        if isinstance(given, HubDataset):
            yield FileRecord(str(given), 0, given.fingerprint())
            continue
        tokens = given.with_suffix(".bin")
        for file in (given, tokens) if given.suffix == INDEX_ENDING and tokens.is_file() else (given,):
            try:
                yield FileRecord(str(file), file.stat().st_size, sha256_file(file, DataError))
            except OSError as error:
                raise DataError(f"{file}: cannot be read: {reason(error)}") from None


def size_of(given: Input) -> int:
    """Bytes, as far as they are known: 0 for a dataset of the Hub."""
    if isinstance(given, HubDataset):
        return 0
    tokens = given.with_suffix(".bin")
    return (tokens if given.suffix == INDEX_ENDING and tokens.is_file() else given).stat().st_size


def _files_of(given: str, passed_over: list[Path]) -> list[Path]:
    path = Path(given)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _below(path, passed_over)
    if path.exists():
        open_regular(path, DataError).close()  # a named pipe or the like: says so
    matches = glob.glob(given, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return sorted(file for file in map(Path, matches) if file.is_file())


def _below(folder: Path, passed_over: list[Path]) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not _hidden(file.relative_to(folder)))
    for file in files:
        if file.name == _SAVED_SPLITS:
            _require_one_split(file.parent)
    rows = {file.parent: _saved_rows(file) for file in files if _is_saved(file)}
    kept = []
    for file in files:
        is_side = any(fnmatch(file.name.lower(), pattern) for pattern in _SIDE_FILES)
        if file.name not in rows.get(file.parent, (file.name,)) or is_side:
            passed_over.append(file)
        else:
            kept.append(file)
    return kept


def _is_saved(file: Path) -> bool:
    """Whether this is the state.json of a folder of `save_to_disk`."""
    return file.name == _SAVED[0] and (file.parent / _SAVED[1]).is_file()


def _require_one_split(folder: Path) -> None:
    """Training data must not be mixed with what it is to be tested on."""
    splits = sorted(file.parent.name for file in folder.glob(f"*/{_SAVED[0]}"))
    if len(splits) > 1:
        raise DataError(f"{folder}: holds the splits {', '.join(splits)}: name one, such as {folder / splits[0]}")


def _saved_rows(state_file: Path) -> set[str]:
    """The names of the files with a saved dataset's rows: caches of other steps may lie beside them."""
    state = read_model(state_file, _SavedState, error=DataError, limit=_STATE_BYTES)
    if state.indices:
        raise DataError(f"{state_file.parent}: was saved with rows chosen by an index: save flatten_indices() of it")
    names = {record.filename for record in state.data_files}
    for name in names:
        if not (state_file.parent / name).is_file():
            raise DataError(f"{state_file.parent / name}: is missing, and {state_file} names it")
    return names


def _index_of(file: Path) -> Path:
    """NAME.idx for the NAME.bin beside it."""
    index = file.with_suffix(INDEX_ENDING)
    return index if file.suffix == ".bin" and index.is_file() else file


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
