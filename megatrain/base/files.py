"""Files: those that somebody else may have written are read as regular files only, with a size limit before any
allocation and one message that names the file, whatever is wrong with it; our own are written whole or not at all.
"""

import hashlib
import json
import os
import stat
from contextlib import suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from megatrain.base.errors import MegatrainError

JSON_LIMIT = 64 << 20  # bytes of a JSON file, unless its reader knows better
VALUES_LIMIT = 1_000_000  # of a JSON file: two bytes become a hundred in memory, and a thousand where they are wrong
_Model = TypeVar("_Model")  # a pydantic model, a dataclass, a NamedTuple
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
_SIGNATURES = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (b"<!doctype html", "an HTML page: the download failed or needs a login"),
    (b"<html", "an HTML page: the download failed or needs a login"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"BZh", "compressed with bzip2"),
    (b"\x04\x22\x4d\x18", "compressed with lz4"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF model"),
    (b"PAR1", "a parquet file"),
)


def open_regular(path: Path, error: type[MegatrainError]) -> BufferedReader:
    """Open an existing regular file for reading; never waits for a writer, as opening a named pipe would.

    Raises:
        error: the file is absent, unreadable, or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as cause:  # ValueError: a NUL byte, or a character that no file name can hold
        raise error(f"{path}: cannot be read: {reason(cause)}") from None
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise error(f"{path}: cannot be read: it is {_KINDS.get(kind, 'no regular file')}, not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, *, limit: int, error: type[MegatrainError]) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        error: the file is absent, unreadable, no regular file, or larger.
    """
    with open_regular(path, error) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            content = file.read(size + 1) if size <= limit else b""  # `read` allocates what it is asked for
        except OSError as cause:
            raise error(f"{path}: cannot be read: {reason(cause)}") from None
    if size > limit or len(content) > limit:
        raise error(f"{path}: has {max(size, len(content)):,} bytes; at most {limit:,} are read of such a file")
    return content


def sha256_file(path: Path, error: type[MegatrainError]) -> str:
    """In hexadecimal.

    Raises:
        error: the file is absent, unreadable, or no regular file.
    """
    with open_regular(path, error) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(content: bytes | str, where: object, error: type[MegatrainError], *, values: int | None = None) -> Any:
    """Parse JSON as its standard has it: UTF-8, without NaN and Infinity, however deep or long.

    Args:
        where: the file, or file and line, that the message begins with.
        values: the most that may be in it, counted by its commas.

    Raises:
        error: it is not JSON, nested deeper than Python can parse, or holds more values.
    """
    if values is not None:
        found = content.count(b",") if isinstance(content, bytes) else content.count(",")
        if found > values:
            raise error(f"{where}: has {found:,} commas; at most {values:,} values are read of such a file")
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise error(f"{where}: is JSON nested too deeply to be read") from None
    except ValueError as cause:
        head = content[:64] if isinstance(content, bytes) else content[:64].encode(errors="replace")
        known = recognise(head)
        raise error(f"{where}: is not JSON: {f'it is {known}' if known else cause}") from None


def read_json(path: Path, *, error: type[MegatrainError], limit: int = JSON_LIMIT) -> Any:
    """The value of a JSON file. Raises `error`, naming the file, whatever is wrong with it."""
    return parse_json(read_bytes(path, limit=limit, error=error), path, error, values=VALUES_LIMIT)


def parse_model(model: type[_Model], value: Any, where: object, error: type[MegatrainError]) -> _Model:
    """Hold a value against a model or dataclass. Raises `error`, naming the first field that is wrong and its value."""
    try:
        found: _Model = _adapter(model).validate_python(value)  # type: ignore[arg-type]
        return found
    except RecursionError:
        raise error(f"{where}: is nested too deeply to be read") from None
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) + ": " if first["loc"] else ""
        ours = first["type"] == "value_error" and not first["loc"]  # it says itself which value
        given = "" if first["type"] == "missing" or ours else f"{_short(first['input'])}: "
        more = f" ({cause.error_count() - 1} more)" if cause.error_count() > 1 else ""
        raise error(f"{where}: {field}{given}{first['msg'].removeprefix('Value error, ')}{more}") from None


def read_model(path: Path, model: type[_Model], *, error: type[MegatrainError], limit: int = JSON_LIMIT) -> _Model:
    """A JSON file as a model or dataclass. Raises `error`, naming file, field and value, whatever is wrong with it."""
    return parse_model(model, read_json(path, error=error, limit=limit), path, error)


def recognise(head: bytes) -> str | None:
    """What a file is by its first bytes, where that is something that often lies under another file's name."""
    if not head.strip():
        return "empty"
    lowered = head.lstrip().lower()
    return next((name for start, name in _SIGNATURES if head.startswith(start) or lowered.startswith(start)), None)


def reason(error: BaseException) -> str:
    """Why a file operation failed, in the operating system's words, without the path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "…"


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader, or a crash, sees the old file or the whole new one. An OSError names `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        with suppress(OSError):  # on a full disk, its half would only take room
            temporary.unlink()
        raise


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
