"""Texts with labels as rows of tokens: what a tokenizer makes of each text, and the label at one of its positions.

The label stands where transformers' classifiers look for it: at an encoder's first token, at a causal model's last one.
No torch: preflight and ranks read alike.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import tokenizers
from numpy.typing import NDArray

from megatrain.base.errors import ConfigError, DataError
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_rows import Mistakes
from megatrain.data.examples.example_set import ExampleSet, FileReport, packed, padding_of
from megatrain.data.examples.labelled_text import LabelledText, reader
from megatrain.data.examples.packing import NO_LABEL, Example
from megatrain.data.text.prompts import PromptEncoder
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.model.architecture import ModelSection
from megatrain.tasks.sequence_classification.section import SequenceClassificationSection

_AT_ONCE = 1024


@dataclass(slots=True)
class ClassifiedReport(FileReport):
    """What became of one file's examples."""

    cut: int = 0
    tokens_cut: int = 0
    labels: Counter[str] = field(default_factory=Counter)

    def warning(self) -> str | None:
        if self.dropped:
            return FileReport.warning(self)
        if not self.cut:
            return None
        return (
            f"{self.path}: {self.cut:,} of {self.examples:,} examples, cut to {self.sequence_length} tokens, lose "
            f"{self.tokens_cut:,} tokens at their end. Raise finetune.sequence_length, or set task.truncation: drop"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifiedSet(ExampleSet):
    """All examples of some files, packed."""

    labels: tuple[str, ...]

    def warnings(self) -> list[str]:
        counts = sum((file.labels for file in self.files if isinstance(file, ClassifiedReport)), Counter[str]())
        absent = [label for label in self.labels if not counts[label]]
        told = [f"no example has the label {', '.join(map(repr, absent))} (task.labels)"] if absent else []
        return [text for file in self.files if (text := file.warning())] + told


def read_classified(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    section: SequenceClassificationSection,
    *,
    template: ChatTemplate | None = None,
    sequence_length: int,
    model: ModelSection,
) -> ClassifiedSet:
    """Read, encode and pack the examples of files, folders and glob patterns, in their order.

    Args:
        section: with its labels.
        template: plays no part.

    Raises:
        DataError: a file cannot be read, or examples are unusable; names the file and line of each, up to a limit.
        ConfigError: a sequence has no room for an example.
    """
    encoder = TextEncoder(tokenizer, section, sequence_length=sequence_length, model=model)
    rows, files = packed(paths, reader(section), encoder, ClassifiedReport, sequence_length)
    return ClassifiedSet(rows=rows, files=files, sequence_length=sequence_length, labels=section.labels or ())


class TextEncoder:
    """Texts -> examples that fit into a sequence: what transformers' tokenizer makes of them, and the label.

    Raises:
        DataError: a token that the tokenizer adds lies outside of the model's embedding.
        ConfigError: a sequence has no room for an example.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        section: SequenceClassificationSection,
        *,
        sequence_length: int,
        model: ModelSection,
    ) -> None:
        assert section.num_labels is not None, "the launcher finds them"
        self._encoder = PromptEncoder(tokenizer)
        texts = 1 if section.text_pair_field is None else 2
        self._frame = self._encoder.frame(texts)
        self._tail = [tokenizer.eos_id] if section.end_token else []
        self._truncation = section.truncation
        self._problem = section.problem
        self._numbers = {label: number for number, label in enumerate(section.labels or ())}
        self._sequence_length = sequence_length
        self._model = model
        added = {*self._frame.front, *self._frame.between, *self._frame.behind, *self._tail}
        if outside := [number for number in added if number >= model.padded_vocab_size]:
            raise DataError(
                f"{tokenizer.name}: the token {self._token(outside[0])} lies outside of the model's embedding of "
                f"{model.padded_vocab_size} rows; give the tokenizer that the model was trained with"
            )
        self._room = sequence_length - self._frame.ids - len(self._tail)
        if self._room < texts:
            least = sequence_length - self._room + texts
            raise ConfigError(
                f"finetune.sequence_length: {sequence_length}: must be at least {least}: the tokenizer and the task "
                f"add {least - texts} tokens to each example"
            )
        self.pad_id = padding_of(tokenizer, model.padded_vocab_size)

    def examples(self, rows: Iterator[LabelledText], report: ClassifiedReport, mistakes: Mistakes) -> Iterator[Example]:
        """The usable examples; counts them in `report`, and adds to `mistakes` what is wrong with the others."""
        while batch := list(itertools.islice(rows, _AT_ONCE)):
            report.examples += len(batch)
            encoded = self._encoder.texts([text for row in batch for text in row.texts])
            for row in batch:
                found = [next(encoded) for _ in row.texts]
                try:
                    example = self._example(row, found, report)
                except DataError as error:
                    mistakes.add(error)
                    continue
                if example is not None:
                    report.labels.update(row.labels)
                    yield example

    def _example(
        self, row: LabelledText, encoded: Sequence[tokenizers.Encoding | DataError], report: ClassifiedReport
    ) -> Example | None:
        texts = []
        for encoding in encoded:
            if isinstance(encoding, DataError):
                raise DataError(f"{row.where}: {encoding}")
            ids = list(encoding.ids)
            if not ids:
                raise DataError(f"{row.where}: a text has no token of this tokenizer: nothing to learn from")
            if max(ids) >= self._model.padded_vocab_size:
                raise DataError(
                    f"{row.where}: holds the token {self._token(max(ids))}, which lies outside of the model's "
                    f"embedding of {self._model.padded_vocab_size} rows"
                )
            texts.append(ids)
        length = sum(map(len, texts))
        if length > self._room:
            if self._truncation == "error":
                raise DataError(
                    f"{row.where}: has {length + self._sequence_length - self._room} tokens, more than "
                    f"finetune.sequence_length ({self._sequence_length})"
                )
            if self._truncation == "drop":
                report.dropped += 1
                return None
            report.cut += 1
            report.tokens_cut += length - self._room
            texts = _cut(texts, self._room)
        ids, types = self._frame.around(texts)
        ids += self._tail
        labels = np.full(len(ids), NO_LABEL, dtype=np.int64)
        single = self._problem == "single_label"
        labels[-1 if self._model.is_causal else 0] = self._numbers[row.labels[0]] if single else 0
        several = self._model.token_types > 1 and len(texts) > 1
        types = [min(one, self._model.token_types - 1) for one in [*types, *[types[-1]] * len(self._tail)]]
        token_types = np.array(types, dtype=np.int64) if several else None
        return Example(np.array(ids, dtype=np.int32), 0, labels, token_types, values=self._values(row))

    def _values(self, row: LabelledText) -> NDArray[np.float32] | None:
        """What is learnt of the example, where that is no single label."""
        if self._problem == "single_label":
            return None
        if self._problem == "regression":
            return np.array([row.number], dtype=np.float32)
        values = np.zeros(len(self._numbers), dtype=np.float32)
        values[[self._numbers[label] for label in row.labels]] = 1.0
        return values

    def _token(self, number: int) -> str:
        return f"{self._encoder.text_of(number)!r} (id {number})"


def _cut(texts: Sequence[list[int]], room: int) -> list[list[int]]:
    """Without what is too much at the end: of two texts, the longer one's until both are as long."""
    if len(texts) == 1:
        return [texts[0][:room]]
    first, second = texts
    half = room // 2
    if len(second) <= half:
        return [first[: room - len(second)], second]
    if len(first) <= room - half:
        return [first, second[: room - len(first)]]
    return [first[: room - half], second[:half]]
