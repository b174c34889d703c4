"""Which process started the ranks, by what no clock changes: boot id, pid namespace, pid, start in ticks since boot."""

import socket
from pathlib import Path
from typing import NamedTuple

from megatrain.run.attempts import Attempt
from megatrain.run.directory import RunDir
from megatrain.run.lock import launcher_file

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Identity(NamedTuple):
    """A process of this machine, for good: a pid is given again, these together are not."""

    boot: str | None
    pid_namespace: str | None
    start_ticks: int | None


def identity(pid: int) -> Identity:
    """Of a process that runs here. None for what this system does not tell."""
    return Identity(_text(_BOOT_ID), _namespace(), _start_ticks(pid))


def is_elsewhere(attempt: Attempt) -> bool:
    """Whether the launcher ran where this process cannot see it: on another machine, or in another container."""
    if attempt.boot is None:
        return attempt.host != socket.gethostname()
    return (attempt.boot, attempt.pid_namespace) != (_text(_BOOT_ID), _namespace())


def lives(run: RunDir, attempt: Attempt) -> bool:
    """Whether the attempt's launcher, which is not elsewhere, still runs for this very folder."""
    if attempt.start_ticks is None:  # recorded by an earlier version: all there is to go by is the process's name
        return _start_ticks(attempt.pid) is not None and _named_megatrain(attempt.pid)
    if _start_ticks(attempt.pid) != attempt.start_ticks:
        return False
    return _has_open(run, attempt.pid) is not False


def not_to_be_signalled(run: RunDir, attempt: Attempt) -> str | None:
    """Why the attempt's process is not provably a launcher of this run, in words; None when it is."""
    process = f"process {attempt.pid}"
    if is_elsewhere(attempt):
        return f"{process} was started on {attempt.host}"
    if attempt.start_ticks is None:
        return f"{process} was recorded by an earlier version, without its start time: it may be any process"
    if _start_ticks(attempt.pid) != attempt.start_ticks:
        return f"{process} is not the one that was started then"
    if attempt.folder is None or not _same_folder(Path(attempt.folder), run.path):
        return f"{process} was started for {attempt.folder}, of which this folder is a copy or a new name"
    held = _has_open(run, attempt.pid)
    if held is None:
        return f"{process} belongs to another user"
    return None if held else f"{process} is no launcher of this run"


def _has_open(run: RunDir, pid: int) -> bool | None:
    """Whether a process has the run's launcher.lock open; None where that may not be seen."""
    try:
        wanted = launcher_file(run).stat()
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError:
        return None
    except OSError:
        return False
    if wanted.st_nlink != 1:  # a second name for a file that something else has open
        return False
    for descriptor in descriptors:
        try:
            found = descriptor.stat()
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
    return False


def _same_folder(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


def _start_ticks(pid: int) -> int | None:
    """Field 22 of proc(5)'s stat, after the command's name, which may hold anything; None for one that has ended."""
    fields = (_text(Path(f"/proc/{pid}/stat")) or "").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else None


def _named_megatrain(pid: int) -> bool:
    line = _text(Path(f"/proc/{pid}/cmdline")) or ""
    return "megatrain" in line or "launcher." in line


def _namespace() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
