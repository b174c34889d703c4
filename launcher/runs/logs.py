"""What a run prints, from its newest log on, and as it is written."""

import time
from collections.abc import Iterator
from pathlib import Path

from launcher.runs.status import run_status
from megatrain.base.errors import ConfigError, MegatrainError
from megatrain.run.directory import RunDir

_POLL_SECONDS = 0.5
_ASK_SECONDS = 5.0  # between two looks at whether the run still lives
_CHUNK = 1 << 16


def read_log(run: RunDir, *, lines: int, rank: int | None = None, follow: bool = False) -> Iterator[str]:
    """The last `lines` lines, then with `follow` what comes until the run ends. A job that is requeued continues
    the same log.

    Raises:
        ConfigError: there is no such log (yet).
    """
    while (log := newest_log(run, rank)) is None:
        if not follow or not _alive(run):
            raise ConfigError(f"{run}: has no log{'' if rank is None else f' of rank {rank}'} yet.")
        time.sleep(_POLL_SECONDS)
    with open(log, encoding="utf-8", errors="replace") as file:
        yield _tail(log, lines)
        file.seek(0, 2)
        asked = time.monotonic()
        while follow:
            if text := file.read(_CHUNK):
                yield text
                continue
            if time.monotonic() - asked > _ASK_SECONDS:
                alive, asked = _alive(run), time.monotonic()
                if not alive:
                    yield file.read()
                    return
            time.sleep(_POLL_SECONDS)


def newest_log(run: RunDir, rank: int | None = None) -> Path | None:
    """The job's, or rank 0's of a run on this machine, whichever was written last."""
    pattern = "slurm-*.log" if rank is None else f"rank-{rank}.log"
    found = [*run.logs.glob(pattern), *([run.logs / "rank-0.log"] if rank is None else [])]
    written = [path for path in found if path.is_file()]
    return max(written, key=lambda path: path.stat().st_mtime) if written else None


def _alive(run: RunDir) -> bool:
    try:
        return run_status(run).state in ("running", "pending")
    except MegatrainError:
        return False


def _tail(log: Path, lines: int) -> str:
    size = log.stat().st_size
    with open(log, "rb") as file:
        file.seek(max(0, size - 512 * max(1, lines)))
        text = file.read().decode(errors="replace").splitlines(keepends=True)
    return "".join(text[-lines:]) if lines else ""
