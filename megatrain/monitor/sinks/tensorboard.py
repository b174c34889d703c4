"""The same numbers as metrics.jsonl, as TensorBoard scalars over the optimizer step."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch.utils.tensorboard import SummaryWriter

from megatrain.base.errors import PreflightError
from megatrain.base.files import reason
from megatrain.config.resolved import ResolvedRun
from megatrain.monitor.metric import METRICS
from megatrain.run.directory import RunDir

_FLUSH_SECONDS = 10  # what a kill can lose
_QUEUE = 1_000  # events; a writer thread empties it, so a slow disk does not stop the loop


class TensorBoard:
    """Writes RUN/tensorboard. A resumed run hides the events of the steps that it replays.

    Args:
        resume_step: optimizer steps done before this start; 0 for a run from its beginning.

    Raises (also while writing and closing):
        PreflightError: the folder cannot be written. Events are written by a thread, so a later call may raise.
    """

    def __init__(self, run: RunDir, config: ResolvedRun, *, resume_step: int) -> None:
        self._failed = False
        self._path = run.tensorboard
        _silence_writer_thread()
        replayed_from = resume_step + 1 if resume_step else 0  # at 0, an evaluation before the first step runs again
        with self._named():
            has_events = run.tensorboard.is_dir() and any(run.tensorboard.iterdir())
            self._writer = SummaryWriter(
                str(run.tensorboard),
                purge_step=replayed_from if has_events else None,
                max_queue=_QUEUE,
                flush_secs=_FLUSH_SECONDS,
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with self._named():
            for name, value in values.items():
                metric = METRICS.get(name)
                if metric.tag is not None:
                    self._writer.add_scalar(metric.tag, value * metric.tag_scale, step)

    def close(self) -> None:
        with self._named():
            self._writer.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._failed:  # said already
                return
            self._failed = True
            raise PreflightError(f"{self._path}: cannot be written: {reason(error)}") from None


def _silence_writer_thread() -> None:
    """Its error is raised by the next write as well, where it is told in one line instead of a traceback."""
    before = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(ended.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and isinstance(ended.exc_value, OSError)):
            before(ended)

    threading.excepthook = hook
