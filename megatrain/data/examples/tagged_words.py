"""Rows of words with a tag each, as tokens: the tag is at the first token of its word, the other tokens have none.

Words are encoded as a text with spaces between them. No torch: preflight and ranks read alike.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import tokenizers

from megatrain.base.errors import DataError
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.classification import ClassifiedReport, ClassifiedSet
from megatrain.data.examples.example_rows import all_usable, field_of, names_of
from megatrain.data.examples.example_set import packed
from megatrain.data.examples.labels import complete, refuse_unknown
from megatrain.data.examples.packing import Example
from megatrain.data.examples.row_encoder import RowEncoder
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.model.architecture import ModelSection
from megatrain.tasks.token_classification.section import TokenClassificationSection


class Tagged(NamedTuple):
    where: str  # file and line
    words: list[str]
    tags: list[str]


def with_tags(
    section: TokenClassificationSection, paths: Sequence[str], before: TokenClassificationSection | None = None
) -> TokenClassificationSection:
    """As `labels.complete`."""
    tags = (tag for row in all_usable(paths, partial(_tagged, section)) for tag in row.tags)
    return complete(section, paths, before, field=section.tags_field, found=tags)


def check_rows(paths: Sequence[str], section: TokenClassificationSection) -> None:
    """Read every row, for when there is no tokenizer to encode it with.

    Raises:
        DataError: rows are unusable; names file and line of each, up to a limit.
    """
    for _ in all_usable(paths, partial(_tagged, section)):
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
    rows, files = packed(paths, partial(_tagged, section), encoder, ClassifiedReport, sequence_length)
    return ClassifiedSet(rows=rows, files=files, sequence_length=sequence_length, labels=section.labels)


class WordEncoder(RowEncoder[Tagged]):
    """Words -> examples that fit into a sequence: what transformers' tokenizer makes of them, and their tags.

    Raises:
        ConfigError: a sequence has no room for an example.
    """

    def __init__(
        self, tokenizer: Tokenizer, section: TokenClassificationSection, *, sequence_length: int, model: ModelSection
    ) -> None:
        super().__init__(tokenizer, section.labels, sequence_length=sequence_length, model=model)
        self._truncation = section.truncation

    def text(self, row: Tagged) -> str:
        return " ".join(row.words)

    def labels(self, row: Tagged) -> list[str]:
        return row.tags

    def example(self, row: Tagged, encoding: tokenizers.Encoding, report: ClassifiedReport) -> Example | None:
        ids = list(encoding.ids)
        places = first_tokens(row, encoding.offsets)
        if len(ids) > self._room:
            if self._truncation == "error":
                raise self._too_long(row, f"has {len(ids) + self._frame.ids} tokens")
            if self._truncation == "drop":
                report.dropped += 1
                return None
            report.cut += 1
            report.tokens_cut += len(ids) - self._room
            ids = ids[: self._room]
        front = len(self._frame.front)
        kept = {front + place: tag for place, tag in zip(places, row.tags, strict=True) if place < len(ids)}
        return self._framed(ids, kept)


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


def _tagged(section: TokenClassificationSection, where: str, row: Mapping[str, Any]) -> Tagged:
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
    refuse_unknown(where, section.tags_field, tags, section.labels)
    return Tagged(where, words, tags)
