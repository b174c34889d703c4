"""A user's function on each sample. It may run in processes of its own; the order of the samples is not its business.

    def transform(tokens, ends, position):     # integers [S + 1], int64 ends as in batch.Row, the sample's position
        return tokens, ends                    # of the same length; ids below the vocabulary

Whatever is random in it should be drawn from the position: then a resumed run repeats it.
"""

import importlib
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import DataError
from megatrain.config import TransformSection
from megatrain.data.loading.batch import Rows

_AT_ONCE = 16  # samples a worker gets in one go


class Transform:
    """Applies `data.transform` to rows, in their order.

    Raises:
        DataError: there is no such function.
    """

    def __init__(self, section: TransformSection, vocab_size: int) -> None:
        self._name = section.function
        self._vocab_size = vocab_size
        self._function = _load(section.function)
        self._workers: ProcessPoolExecutor | None = None
        if section.workers:
            # not forked: this process has threads, whose locks a fork would copy as they are
            context = multiprocessing.get_context("spawn")
            self._workers = ProcessPoolExecutor(section.workers, mp_context=context)

    def apply(self, rows: Rows, positions: NDArray[np.int64]) -> Rows:
        """The rows at `positions`, transformed.

        Raises:
            DataError: the function failed on a sample, or returned something else than a sample; says which one.
        """
        numbers = positions.tolist()
        names = [self._name] * len(numbers)
        if self._workers is None:
            results = [_call(*of) for of in zip(names, rows.tokens, rows.ends, numbers, strict=True)]
        else:
            results = list(self._workers.map(_call, names, rows.tokens, rows.ends, numbers, chunksize=_AT_ONCE))
        for position, result in zip(numbers, results, strict=True):
            if wrong := self._problem(result, rows.tokens.shape[1]):
                raise DataError(f"data.transform.function: {self._name}: sample {position}: {wrong}")
        return Rows(np.stack([tokens for tokens, _ in results]), [ends for _, ends in results], rows.targets)

    def close(self) -> None:
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)

    def _problem(self, result: Any, length: int) -> str | None:
        if isinstance(result, str):
            return result
        tokens, ends = result
        if tokens.shape != (length,) or tokens.dtype.kind not in "iu":
            return f"gave tokens of shape {tokens.shape} and type {tokens.dtype}, not {length} whole numbers"
        if tokens.min() < 0 or tokens.max() >= self._vocab_size:
            return f"gave a token outside 0..{self._vocab_size - 1}"
        if ends.size and (ends[0] < 1 or ends[-1] > length - 1 or (np.diff(ends) < 1).any()):
            return f"gave ends that do not ascend within 1..{length - 1}"
        return None


def _load(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise DataError(f"data.transform.function: {name}: {error}. Is its folder on PYTHONPATH?") from None
    return found


def _call(name: str, tokens: Any, ends: Any, position: int) -> Any:
    """(tokens, ends) as arrays, or what went wrong: errors of a user's own class may not cross processes."""
    try:
        new_tokens, new_ends = _load(name)(tokens, ends, position)
        return np.asarray(new_tokens), np.asarray(new_ends, dtype=np.int64)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
