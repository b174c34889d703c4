"""Rows of words with a tag each, as tokens: the tag is at the first token of its word, the other tokens have none.

Words are encoded as a text with spaces between them. No torch: preflight and ranks read alike.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from megatrain.base.errors import ConfigError, DataError
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.classification import ClassifiedReport, ClassifiedSet
from megatrain.data.examples.example_set import FileReport
from megatrain.data.examples.packing import NO_LABEL, Example, pack
from megatrain.data.examples.prompt_completion import Mistakes, TooManyMistakesError, field_of, names_of
from megatrain.data.text.inputs import find_inputs
from megatrain.data.text.prompts import PromptEncoder
from megatrain.data.text.rows import Row, read_rows
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.model.architecture import ModelSection
from megatrain.tasks.token_classification.section import TokenClassificationSection

_AT_ONCE = 1024
_SHOWN = 8  # labels


class Tagged(NamedTuple):
    where: str  # file and line
    words: list[str]
    tags: list[str]


def with_tags(
    section: TokenClassificationSection, paths: Sequence[str], before: TokenClassificationSection | None = None
) -> TokenClassificationSection:
    """The section with its labels: as they are given, as the run began, or those of the training examples, sorted.

    Raises:
        DataError: a row is unusable, or there are fewer than two labels.
    """
    if section.labels is not None:
        return section
    if before is not None and before.labels is not None:
        return section.model_copy(update={"labels": before.labels})
    try:
        found = {tag for row in _all_rows(paths, section) for tag in row.tags}
        if len(found) < 2:
            text = f"its tags are {', '.join(map(repr, found))}: a classifier tells at least two apart"
            raise DataError(f"{', '.join(paths)}: {section.tags_field}: {text}. Name all in task.labels")
    except DataError as error:
        raise DataError("\n".join(f"finetune.train: {line}" for line in str(error).splitlines())) from None
    return section.model_copy(update={"labels": tuple(sorted(found))})


def check_rows(paths: Sequence[str], section: TokenClassificationSection) -> None:
    """Read every row, for when there is no tokenizer to encode it with.

    Raises:
        DataError: rows are unusable; names file and line of each, up to a limit.
    """
    for _ in _all_rows(paths, section):
        pass


def read_tagged(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    section: TokenClassificationSection,
    *,
    template: ChatTemplate | None = None,
    sequence_length: int,
    model: ModelSection,
) -> ClassifiedSet:
    """As `classification.read_classified`."""
    assert section.labels is not None, "the launcher finds them"
    encoder = WordEncoder(tokenizer, section, sequence_length=sequence_length, model=model)
    mistakes = Mistakes()
    examples: list[Example] = []
    files: list[FileReport] = []
    for file in find_inputs(paths).inputs:
        report = ClassifiedReport(str(file), sequence_length)
        examples += encoder.examples(_rows(read_rows(file), section, mistakes), report, mistakes)
        files.append(report)
        if not report.examples:
            mistakes.add_empty(report.path)
    mistakes.demand_none()
    if not examples:
        raise DataError(f"{', '.join(paths)}: all {sum(file.examples for file in files):,} examples are dropped")
    rows = pack(examples, sequence_length, encoder.pad_id)
    return ClassifiedSet(rows=rows, files=files, sequence_length=sequence_length, labels=section.labels)


class WordEncoder:
    """Words -> examples that fit into a sequence: what transformers' tokenizer makes of them, and their tags.

    Raises:
        ConfigError: a sequence has no room for an example.
    """

    def __init__(
        self, tokenizer: Tokenizer, section: TokenClassificationSection, *, sequence_length: int, model: ModelSection
    ) -> None:
        assert section.labels is not None, "the launcher finds them"
        self._encoder = PromptEncoder(tokenizer)
        self._frame = self._encoder.frame(1)
        self._truncation = section.truncation
        self._numbers = {label: number for number, label in enumerate(section.labels)}
        self._sequence_length = sequence_length
        self._embedded = model.padded_vocab_size
        self._room = sequence_length - self._frame.ids
        if self._room < 1:
            least = self._frame.ids + 1
            raise ConfigError(f"finetune.sequence_length: {sequence_length}: must be at least {least}")
        # padding has no label and nothing attends to it: any id that the embedding has will do
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id < self._embedded else tokenizer.eos_id

    def examples(self, rows: Iterator[Tagged], report: ClassifiedReport, mistakes: Mistakes) -> Iterator[Example]:
        """The usable examples; counts them in `report`, and adds to `mistakes` what is wrong with the others."""
        while batch := list(itertools.islice(rows, _AT_ONCE)):
            report.examples += len(batch)
            encoded = self._encoder.texts([" ".join(row.words) for row in batch])
            for row, encoding in zip(batch, encoded, strict=True):
                try:
                    if isinstance(encoding, DataError):
                        raise DataError(f"{row.where}: {encoding}")
                    example = self._example(row, encoding, report)
                except DataError as error:
                    mistakes.add(error)
                    continue
                if example is not None:
                    report.labels.update(row.tags)
                    yield example

    def _example(self, row: Tagged, encoding: tokenizers.Encoding, report: ClassifiedReport) -> Example | None:
        ids = list(encoding.ids)
        places = first_tokens(row, encoding.offsets)
        added = [*ids, *self._frame.front, *self._frame.behind]
        if max(added) >= self._embedded:
            text = self._encoder.text_of(max(added))
            raise DataError(
                f"{row.where}: holds the token {text!r} (id {max(added)}), which lies outside of the model's "
                f"embedding of {self._embedded} rows"
            )
        if len(ids) > self._room:
            if self._truncation == "error":
                raise DataError(
                    f"{row.where}: has {len(ids) + self._frame.ids} tokens, more than finetune.sequence_length "
                    f"({self._sequence_length})"
                )
            if self._truncation == "drop":
                report.dropped += 1
                return None
            report.cut += 1
            report.tokens_cut += len(ids) - self._room
            ids = ids[: self._room]
        framed, _ = self._frame.around([ids])
        labels = np.full(len(framed), NO_LABEL, dtype=np.int64)
        for place, tag in zip(places, row.tags, strict=True):
            if place < len(ids):
                labels[len(self._frame.front) + place] = self._numbers[tag]
        return Example(np.array(framed, dtype=np.int32), 0, labels)


def first_tokens(row: Tagged, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The first token of each word of a text that has a space between them.

    Raises:
        DataError: a word has no token of its own.
    """
    places: list[int] = []
    begin, token = 0, 0
    for word in row.words:
        end = begin + len(word)
        while token < len(offsets) and offsets[token][1] <= begin:
            token += 1
        if token == len(offsets) or offsets[token][0] >= end or (places and places[-1] == token):
            raise DataError(f"{row.where}: the word {word!r:.40} has no token of its own of this tokenizer")
        places.append(token)
        begin = end + 1
    return places


def _all_rows(paths: Sequence[str], section: TokenClassificationSection) -> Iterator[Tagged]:
    mistakes = Mistakes()
    for file in find_inputs(paths).inputs:
        rows = 0
        for row in _rows(read_rows(file), section, mistakes):
            rows += 1
            yield row
        if not rows:
            mistakes.add_empty(str(file))
    mistakes.demand_none()


def _rows(rows: Iterator[Row], section: TokenClassificationSection, mistakes: Mistakes) -> Iterator[Tagged]:
    """The usable rows; what is wrong with the others, or with their file, is a mistake."""
    try:
        for row in rows:
            try:
                tagged = _tagged(row.where, row.fields, section)
            except DataError as error:
                mistakes.add(error)
            else:
                yield tagged
    except TooManyMistakesError:
        raise
    except DataError as error:
        mistakes.add(error)


def _tagged(where: str, row: Mapping[str, Any], section: TokenClassificationSection) -> Tagged:
    found = []
    for key, name in (("tokens_field", section.tokens_field), ("tags_field", section.tags_field)):
        value = field_of(row, name)
        if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
            raise DataError(
                f"{where}: {name}: is not there as a list of texts; the row has {names_of(row)}. task.{key} names the "
                "field to read"
            )
        found.append(value)
    words, tags = found
    if len(words) != len(tags):
        raise DataError(f"{where}: {section.tags_field}: has {len(tags)} tags for {len(words)} words")
    if (blank := next((word for word in words if word.split() != [word]), None)) is not None:
        raise DataError(f"{where}: {section.tokens_field}: {blank!r:.40}: is no word: it has spaces, or nothing else")
    strange = next((tag for tag in tags if section.labels is not None and tag not in section.labels), None)
    if strange is not None:
        assert section.labels is not None
        shown = ", ".join(map(repr, section.labels[:_SHOWN])) + (", …" if len(section.labels) > _SHOWN else "")
        raise DataError(
            f"{where}: {section.tags_field}: {strange!r:.60}: is not one of the {len(section.labels)} labels that are "
            f"trained ({shown}). Correct it, leave the row out, or name all labels in task.labels"
        )
    return Tagged(where, words, tags)
