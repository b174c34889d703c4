"""Tokenising batches of documents, in this process or several, always in order. Light to import: workers do."""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megatrain.data.tokenizer import Tokenizer
from megatrain.errors import DataError

_BATCHES_AHEAD = 2  # for each worker

Tag = TypeVar("Tag")
Tokens = NDArray[np.uint32]


def encode_documents(
    batches: Iterable[tuple[Tag, Sequence[str]]], tokenizer: Path, workers: int
) -> Iterator[tuple[Tag, list[Tokens]]]:
    """Tokens of each document, uint32 [n] with EOS the last, batch by batch in the order given.

    Args:
        batches: pairs of anything and the documents that belong to it.
        tokenizer: the file or folder, which each worker loads for itself.
        workers: 1 encodes in this process.

    Raises:
        DataError: a worker process died.
    """
    if workers == 1:
        own = Tokenizer.load(tokenizer)
        for tag, texts in batches:
            yield tag, _encode(own, texts)
        return
    # "spawn": the tokenizer's threads and datasets' must not be forked
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=(tokenizer,))
    ahead: deque[tuple[Tag, Future[list[Tokens]]]] = deque()
    try:
        for tag, texts in batches:
            ahead.append((tag, pool.submit(_encode_here, texts)))
            if len(ahead) > _BATCHES_AHEAD * workers:
                yield _wait(*ahead.popleft())
        while ahead:
            yield _wait(*ahead.popleft())
    except BrokenProcessPool:
        raise DataError(
            f"--workers: {workers}: one of these processes died, perhaps out of memory. "
            "Run the command again with fewer; it goes on where it was."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _wait(tag: Tag, future: "Future[list[Tokens]]") -> tuple[Tag, list[Tokens]]:
    return tag, future.result()


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    return [np.append(tokens, np.uint32(tokenizer.eos_id)) for tokens in tokenizer.encode_batch(texts)]


_tokenizer: Tokenizer | None = None  # a worker's own, set when it starts


def _start(path: Path) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _tokenizer = Tokenizer.load(path)


def _encode_here(texts: Sequence[str]) -> list[Tokens]:
    assert _tokenizer is not None
    return _encode(_tokenizer, texts)


def _die_with_parent() -> None:
    """A killed parent cannot stop its workers, which would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
