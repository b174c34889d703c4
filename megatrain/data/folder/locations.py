"""Where data lies: a folder, or an address that fsspec reads. Small whole files are read here."""

from pathlib import Path

from megatrain.base.errors import DataError, PreflightError
from megatrain.base.files import read_bytes, reason


def is_remote(path: str | Path) -> bool:
    return "://" in str(path) and not str(path).startswith("file://")


def location(path: str | Path) -> str:
    """A path or address as it is written in messages and joined to names."""
    return str(path).removeprefix("file://").rstrip("/") or "/"


def join(folder: str | Path, name: str) -> str:
    return f"{location(folder)}/{name}"


def not_installed(address: str, error: Exception) -> PreflightError:
    """What an address needs: a library that is not there, or another protocol."""
    return PreflightError(f"{address}: cannot be read: {error}. Try pip install 'megatrain[remote]'.")


def read_file(folder: str | Path, name: str, *, limit: int) -> bytes:
    """The bytes of a small file.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is larger than `limit` bytes, no regular file, or cannot be read.
    """
    where = join(folder, name)
    if not is_remote(folder):
        try:
            Path(where).stat()
        except NotADirectoryError:
            raise FileNotFoundError(where) from None
        except FileNotFoundError:
            raise
        except (OSError, ValueError):  # read_bytes tells it
            pass
        return read_bytes(Path(where), limit=limit, error=DataError)
    from megatrain.data.folder.remote import read_remote_file  # needs fsspec's http or s3, which not everybody installs

    try:
        content = read_remote_file(where)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {reason(error)}") from None
    if len(content) > limit:
        raise DataError(f"{where}: has {len(content):,} bytes; at most {limit:,} are read of such a file")
    return content
