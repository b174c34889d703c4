"""Rows with labels at some of their tokens -> packed examples: what such tasks do alike."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

import numpy as np
import tokenizers

from megatrain.base.errors import ConfigError, DataError
from megatrain.data.examples.classification import ClassifiedReport
from megatrain.data.examples.example_rows import Mistakes
from megatrain.data.examples.example_set import padding_of
from megatrain.data.examples.packing import NO_LABEL, Example
from megatrain.data.text.prompts import PromptEncoder
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.model.architecture import ModelSection

_AT_ONCE = 1024


class LabelledRow(Protocol):
    @property
    def where(self) -> str:
        """File and line."""


RowT = TypeVar("RowT", bound=LabelledRow)


class RowEncoder(ABC, Generic[RowT]):
    """Each row is one text, with labels at tokens of it.

    Args:
        labels: of the task; None: the launcher has not found them, which is a mistake of ours.

    Raises:
        ConfigError: a sequence has no room for an example.
    """

    def __init__(
        self, tokenizer: Tokenizer, labels: Iterable[str] | None, *, sequence_length: int, model: ModelSection
    ) -> None:
        assert labels is not None, "the launcher finds them"
        self._encoder = PromptEncoder(tokenizer)
        self._frame = self._encoder.frame(1)
        self._numbers = {label: number for number, label in enumerate(labels)}
        self._sequence_length = sequence_length
        self._embedded = model.padded_vocab_size
        self._room = sequence_length - self._frame.ids
        if self._room < 1:
            least = self._frame.ids + 1
            raise ConfigError(f"finetune.sequence_length: {sequence_length}: must be at least {least}")
        self.pad_id = padding_of(tokenizer, self._embedded)

    @abstractmethod
    def text(self, row: RowT) -> str:
        """What is encoded."""

    @abstractmethod
    def labels(self, row: RowT) -> Iterable[str]:
        """All that the row has, to be counted."""

    @abstractmethod
    def example(self, row: RowT, encoding: tokenizers.Encoding, report: ClassifiedReport) -> Example | None:
        """None where the row is dropped, which the report counts.

        Raises:
            DataError: the row is unusable.
        """

    def examples(self, rows: Iterator[RowT], report: ClassifiedReport, mistakes: Mistakes) -> Iterator[Example]:
        """The usable examples; counts them in `report`, and adds to `mistakes` what is wrong with the others."""
        while batch := list(itertools.islice(rows, _AT_ONCE)):
            report.examples += len(batch)
            for row, encoding in zip(batch, self._encoder.texts([self.text(row) for row in batch]), strict=True):
                try:
                    if isinstance(encoding, DataError):
                        raise DataError(f"{row.where}: {encoding}")
                    self._check_embedded(row, encoding.ids)
                    example = self.example(row, encoding, report)
                except DataError as error:
                    mistakes.add(error)
                    continue
                if example is not None:
                    report.labels.update(self.labels(row))
                    yield example

    def _check_embedded(self, row: RowT, ids: list[int]) -> None:
        highest = max([*ids, *self._frame.front, *self._frame.behind])
        if highest >= self._embedded:
            raise DataError(
                f"{row.where}: holds the token {self._encoder.text_of(highest)!r} (id {highest}), which lies outside "
                f"of the model's embedding of {self._embedded} rows"
            )

    def _too_long(self, row: RowT, what: str) -> DataError:
        return DataError(f"{row.where}: {what}, more than finetune.sequence_length ({self._sequence_length})")

    def _framed(self, ids: list[int], labels: dict[int, str]) -> Example:
        """
        Args:
            labels: by place in the framed sequence, which may count from its end.
        """
        framed, _ = self._frame.around([ids])
        numbers = np.full(len(framed), NO_LABEL, dtype=np.int64)
        for place, label in labels.items():
            numbers[place] = self._numbers[label]
        return Example(np.array(framed, dtype=np.int32), 0, numbers)
