"""One task on many batches, in this process or several, the results always in order. Light to import: workers do."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from megatrain.base.errors import DataError

_BATCHES_AHEAD = 2  # for each worker

Tag = TypeVar("Tag")
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_batches(
    batches: Iterable[tuple[Tag, Item]], make_task: Callable[[], Callable[[Item], Result]], workers: int
) -> Iterator[tuple[Tag, Result]]:
    """The task's result for each item, in the order given, beside the tag that came with it.

    Args:
        make_task: called once in each process; can be pickled.
        workers: 1 works in this process.

    Raises:
        DataError: a worker process died.
    """
    if workers == 1:
        task = make_task()
        for tag, item in batches:
            yield tag, task(item)
        return
    # "spawn": the threads of tokenizers and datasets must not be forked
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=(make_task,))
    ahead: deque[tuple[Tag, Future[Result]]] = deque()
    try:
        for tag, item in batches:
            ahead.append((tag, pool.submit(_work, item)))
            if len(ahead) > _BATCHES_AHEAD * workers:
                tag, future = ahead.popleft()
                yield tag, future.result()
        while ahead:
            tag, future = ahead.popleft()
            yield tag, future.result()
    except BrokenProcessPool:
        raise DataError(
            f"--workers: {workers}: one of these processes died, perhaps out of memory. "
            "Run the command again with fewer; it resumes."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_task: Callable[[Any], Any] | None = None  # a worker's own, made when it starts


def _start(make_task: Callable[[], Callable[[Any], Any]]) -> None:
    global _task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _task = make_task()


def _work(item: Any) -> Any:
    assert _task is not None
    return _task(item)


def _die_with_parent() -> None:
    """A killed parent cannot stop its workers, which would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
