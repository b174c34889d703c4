"""Where data lies: a folder, or an address that fsspec reads. Small whole files are read here."""

from pathlib import Path


def is_remote(path: str | Path) -> bool:
    return "://" in str(path) and not str(path).startswith("file://")


def location(path: str | Path) -> str:
    """A path or address as it is written in messages and joined to names."""
    return str(path).removeprefix("file://").rstrip("/") or "/"


def join(folder: str | Path, name: str) -> str:
    return f"{location(folder)}/{name}"


def read_file(folder: str | Path, name: str) -> bytes:
    """The bytes of a small file.

    Raises:
        OSError: it is not there (FileNotFoundError), or cannot be read.
    """
    if not is_remote(folder):
        return Path(join(folder, name)).read_bytes()
    from megatrain.data.folder.remote import read_remote_file  # needs fsspec's http or s3, which not everybody installs

    return read_remote_file(join(folder, name))
