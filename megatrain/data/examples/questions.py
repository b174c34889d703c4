"""Rows of question, context and answers as windows of tokens. No torch: preflight and ranks read alike.

A context that is too long for a sequence is read in windows, each with the whole question, as transformers' tokenizers
do with `truncation="only_second"`, `stride` and `return_overflowing_tokens`.
"""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from megatrain.base.errors import DataError
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_rows import Mistakes, all_usable, field_of, names_of
from megatrain.data.examples.example_set import ExampleSet, FileReport, packed, padding_of
from megatrain.data.examples.packing import NO_LABEL, Example
from megatrain.data.text.prompts import PromptEncoder
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.model.architecture import ModelSection
from megatrain.tasks.question_answering.section import QuestionAnsweringSection

_AT_ONCE = 1024
_MOST_WINDOWS = 1 << 24  # fp32 counts them


class Answer(NamedTuple):
    text: str
    start: int  # character of the context


class Asked(NamedTuple):
    where: str  # file and line
    question: str
    context: str
    answers: tuple[str, ...]
    first: Answer | None  # that is trained on; None: there is none


class Window(NamedTuple):
    """Which question a window is of, and what is added to its tokens' numbers to count the tokens of the context."""

    question: int
    shift: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet(ExampleSet):
    """All questions of some files, and their windows, packed."""

    asked: list[Asked]
    windows: list[Window]

    def warnings(self) -> list[str]:
        lost = sum(file.lost for file in self.files if isinstance(file, QuestionReport))
        told = [f"{lost:,} answers are longer than a window and are not learnt: raise finetune.sequence_length"]
        return told if lost else []


@dataclass(slots=True)
class QuestionReport(FileReport):
    """What became of one file's questions."""

    lost: int = 0  # answers that no window holds


def check_rows(paths: Sequence[str], section: QuestionAnsweringSection) -> None:
    """Read every row, for when there is no tokenizer to encode it with.

    Raises:
        DataError: rows are unusable; names file and line of each, up to a limit.
    """
    for _ in all_usable(paths, partial(_asked, section)):
        pass


def read_questions(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    section: QuestionAnsweringSection,
    *,
    template: ChatTemplate | None = None,
    sequence_length: int,
    model: ModelSection,
) -> QuestionSet:
    """Read, encode and pack the windows of files, folders and glob patterns, in their order.

    Args:
        template: plays no part.

    Raises:
        DataError: a file cannot be read, or rows are unusable; names the file and line of each, up to a limit.
    """
    encoder = QuestionEncoder(tokenizer, section, sequence_length=sequence_length, model=model)
    rows, files = packed(paths, partial(_asked, section), encoder, QuestionReport, sequence_length)
    return QuestionSet(
        rows=rows, files=files, sequence_length=sequence_length, asked=encoder.asked, windows=encoder.windows
    )


def context_offsets(tokenizer: Tokenizer, contexts: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Of each token of each context, its characters: from, and up to."""
    found = PromptEncoder(tokenizer).texts(contexts)
    return [list(encoding.offsets) if not isinstance(encoding, DataError) else [] for encoding in found]


class QuestionEncoder:
    """Questions -> windows that fit into a sequence.

    Attributes:
        asked, windows: of all that were encoded so far.
    """

    def __init__(
        self, tokenizer: Tokenizer, section: QuestionAnsweringSection, *, sequence_length: int, model: ModelSection
    ) -> None:
        self._encoder = PromptEncoder(tokenizer)
        self._frame = self._encoder.frame(2)
        self._stride = section.stride
        self._sequence_length = sequence_length
        self._model = model
        self.asked: list[Asked] = []
        self.windows: list[Window] = []
        self.pad_id = padding_of(tokenizer, model.padded_vocab_size)

    def examples(self, rows: Iterator[Asked], report: QuestionReport, mistakes: Mistakes) -> Iterator[Example]:
        """The usable windows; counts questions in `report`, and adds to `mistakes` what is wrong with the others."""
        while batch := list(itertools.islice(rows, _AT_ONCE)):
            report.examples += len(batch)
            encoded = self._encoder.texts([text for row in batch for text in (row.question, row.context)])
            for row in batch:
                pair = next(encoded), next(encoded)
                try:
                    yield from self._windows(row, pair, report)
                except DataError as error:
                    mistakes.add(error)

    def _windows(
        self, row: Asked, pair: tuple[tokenizers.Encoding | DataError, ...], report: QuestionReport
    ) -> list[Example]:
        encodings = []
        for encoding in pair:
            if isinstance(encoding, DataError):
                raise DataError(f"{row.where}: {encoding}")
            encodings.append(encoding)
        question, context = (list(encoding.ids) for encoding in encodings)
        offsets = encodings[1].offsets
        if not question or not context:
            raise DataError(f"{row.where}: question or context has no token of this tokenizer: nothing to learn from")
        highest = max(*question, *context, *self._frame.front, *self._frame.between, *self._frame.behind)
        if highest >= self._model.padded_vocab_size:
            raise DataError(
                f"{row.where}: holds the token {self._encoder.text_of(highest)!r} (id {highest}), which lies outside "
                f"of the model's embedding of {self._model.padded_vocab_size} rows"
            )
        room = self._sequence_length - self._frame.ids - len(question)
        if room < len(context) and room <= self._stride:
            raise DataError(
                f"{row.where}: the question has {len(question)} tokens, which leaves {max(room, 0)} of "
                f"finetune.sequence_length ({self._sequence_length}) to the context: must be more than task.stride "
                f"({self._stride})"
            )
        answer = _tokens_of(row.first, offsets)
        shown = len(self._frame.front) + len(question) + len(self._frame.between)  # tokens before the context
        begins = [0]
        while begins[-1] + room < len(context):
            begins.append(begins[-1] + room - self._stride)
        found, held = [], 0
        self.asked.append(row)
        for begin in begins:
            part = context[begin : begin + room]
            start = end = 0
            if answer is not None and begin <= answer[0] and answer[1] < begin + len(part):
                start, end = (place - begin + shown for place in answer)
                held += 1
            number = len(self.windows)
            if number >= _MOST_WINDOWS:
                raise DataError(f"{row.where}: there are more than {_MOST_WINDOWS:,} windows")
            self.windows.append(Window(len(self.asked) - 1, begin - shown))
            ids, types = self._frame.around([question, part])
            numbers = [number, start, end, shown, shown + len(part), len(ids)]
            found.append(self._example(ids, types, numbers))
        report.lost += answer is not None and not held
        return found

    def _example(self, ids: list[int], types: list[int], numbers: list[int]) -> Example:
        """Its one label is at its first token, and counts the windows of a batch; see tasks/question_answering."""
        labels = np.full(len(ids), NO_LABEL, dtype=np.int64)
        labels[0] = 0
        token_types = None
        if self._model.token_types > 1:
            token_types = np.minimum(np.array(types, dtype=np.int64), self._model.token_types - 1)
        return Example(
            np.array(ids, dtype=np.int32), 0, labels, token_types, values=np.array(numbers, dtype=np.float32)
        )


def _tokens_of(answer: Answer | None, offsets: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The first and the last token of the context that hold an answer."""
    if answer is None:
        return None
    first = bisect.bisect_right([begin for begin, _ in offsets], answer.start) - 1
    last = bisect.bisect_left([end for _, end in offsets], answer.start + len(answer.text))
    return max(first, 0), max(min(last, len(offsets) - 1), first, 0)


def _asked(section: QuestionAnsweringSection, where: str, row: Mapping[str, Any]) -> Asked:
    texts = []
    for key, name in (("question_field", section.question_field), ("context_field", section.context_field)):
        value = field_of(row, name)
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"{where}: {name}: is not there as text; the row has {names_of(row)}. task.{key} names the field "
                "to read"
            )
        texts.append(value)
    question, context = texts
    answers = _answers(section, where, row)
    for text, start in answers:
        if context[start : start + len(text)] != text:
            there = context[start : start + len(text)]
            raise DataError(
                f"{where}: {section.answers_field}: {text!r:.40} is not at character {start} of the context, where "
                f"{there!r:.40} stands"
            )
    if not answers and not section.unanswerable:
        raise DataError(
            f"{where}: {section.answers_field}: holds no answer. Where that is meant, set task.unanswerable: true"
        )
    return Asked(where, question, context, tuple(text for text, _ in answers), answers[0] if answers else None)


def _answers(section: QuestionAnsweringSection, where: str, row: Mapping[str, Any]) -> list[Answer]:
    value, name = field_of(row, section.answers_field), section.answers_field
    pairs: list[tuple[Any, Any]] | None = None
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            pairs = list(zip(texts, starts, strict=True))
    elif isinstance(value, list) and all(isinstance(one, dict) for one in value):
        pairs = [(one.get("text"), one.get("answer_start")) for one in value]
    if pairs is None or not all(isinstance(text, str) and text and type(at) is int and at >= 0 for text, at in pairs):
        raise DataError(
            f"{where}: {name}: is not there as {{text: […], answer_start: […]}} with as many of both; the row has "
            f"{names_of(row)}. task.answers_field names the field to read"
        )
    return [Answer(text, at) for text, at in pairs]
