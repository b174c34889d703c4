"""Rows of a text with two entities as tokens: markers around both, the relation at one of the positions.

It stands at the first marker of the head where every position sees the whole text, and at the last token of a causal
model. No torch: preflight and ranks read alike.
"""

import itertools
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
from megatrain.tasks.relation_extraction.section import RelationExtractionSection


class Related(NamedTuple):
    """Places are characters of the text, which has its markers."""

    where: str  # file and line
    text: str
    head: int  # where the marker in front of the head begins
    begin: int  # where the first marker begins
    end: int  # where the last one ends
    label: str


def with_relations(
    section: RelationExtractionSection, paths: Sequence[str], before: RelationExtractionSection | None = None
) -> RelationExtractionSection:
    """As `labels.complete`."""
    labels = (row.label for row in all_usable(paths, partial(_related, section)))
    return complete(section, paths, before, field=section.label_field, found=labels)


def check_rows(paths: Sequence[str], section: RelationExtractionSection) -> None:
    """Read every row, for when there is no tokenizer to encode it with.

    Raises:
        DataError: rows are unusable; names file and line of each, up to a limit.
    """
    for _ in all_usable(paths, partial(_related, section)):
        pass


def read_relations(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    section: RelationExtractionSection,
    *,
    template: ChatTemplate | None = None,
    sequence_length: int,
    model: ModelSection,
) -> ClassifiedSet:
    """As `classification.read_classified`."""
    encoder = RelationEncoder(tokenizer, section, sequence_length=sequence_length, model=model)
    rows, files = packed(paths, partial(_related, section), encoder, ClassifiedReport, sequence_length)
    return ClassifiedSet(rows=rows, files=files, sequence_length=sequence_length, labels=section.classes)


class RelationEncoder(RowEncoder[Related]):
    """Marked texts -> examples that fit into a sequence.

    Raises:
        ConfigError: a sequence has no room for an example.
    """

    def __init__(
        self, tokenizer: Tokenizer, section: RelationExtractionSection, *, sequence_length: int, model: ModelSection
    ) -> None:
        super().__init__(tokenizer, section.labels, sequence_length=sequence_length, model=model)
        self._truncation = section.truncation
        self._is_causal = model.is_causal

    def text(self, row: Related) -> str:
        return row.text

    def labels(self, row: Related) -> list[str]:
        return [row.label]

    def example(self, row: Related, encoding: tokenizers.Encoding, report: ClassifiedReport) -> Example | None:
        ids = list(encoding.ids)
        head, first, last = (_token_at(encoding.offsets, place) for place in (row.head, row.begin, row.end - 1))
        if len(ids) > self._room:
            fits = last + 1 - first <= self._room
            if self._truncation == "error" or (self._truncation == "cut" and not fits):
                tokens = len(ids) + self._frame.ids if fits else last + 1 - first
                raise self._too_long(
                    row, f"has {tokens} tokens{'' if fits else ' from the first marker to the last one'}"
                )
            if self._truncation == "drop":
                report.dropped += 1
                return None
            report.cut += 1
            report.tokens_cut += len(ids) - self._room
            begin = max(0, last + 1 - self._room)
            ids, head = ids[begin : begin + self._room], head - begin
        return self._framed(ids, {-1 if self._is_causal else len(self._frame.front) + head: row.label})


def _token_at(offsets: Sequence[tuple[int, int]], place: int) -> int:
    """The first token that ends behind a character."""
    return next((number for number, (_, end) in enumerate(offsets) if end > place), len(offsets) - 1)


def _related(section: RelationExtractionSection, where: str, row: Mapping[str, Any]) -> Related:
    words = field_of(row, section.tokens_field)
    if isinstance(words, list) and words and all(isinstance(word, str) and word for word in words):
        begins = list(itertools.accumulate((len(word) + 1 for word in words), initial=0))
        text, unit = " ".join(words), "words"
        spans = [
            _span(section, where, row, name, len(words), unit) for name in (section.head_field, section.tail_field)
        ]
        places = [(begins[begin], begins[end] - 1) for begin, end in spans]
    else:
        given = field_of(row, section.text_field)
        if not isinstance(given, str) or not given.strip():
            raise DataError(
                f"{where}: neither {section.tokens_field} is there as a list of words, nor {section.text_field} as "
                f"text; the row has {names_of(row)}. task.tokens_field and task.text_field name the fields to read"
            )
        text, unit = given, "characters"
        places = [
            _span(section, where, row, name, len(text), unit) for name in (section.head_field, section.tail_field)
        ]
    label = field_of(row, section.label_field)
    if not isinstance(label, str) or not label:
        raise DataError(
            f"{where}: {section.label_field}: is not there as text; the row has {names_of(row)}. task.label_field "
            "names the field to read"
        )
    refuse_unknown(where, section.label_field, [label], section.labels)
    if max(places)[0] < min(places)[1]:
        raise DataError(
            f"{where}: {section.head_field} and {section.tail_field} share {unit}: markers cannot be nested"
        )
    return _marked(section, where, text, places, label)


def _span(
    section: RelationExtractionSection, where: str, row: Mapping[str, Any], name: str, length: int, unit: str
) -> tuple[int, int]:
    value = field_of(row, name)
    pair = [value.get("start"), value.get("end")] if isinstance(value, dict) else value
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(one) is int for one in pair):
        raise DataError(
            f"{where}: {name}: is not there as [begin, end] in {unit}; the row has {names_of(row)}. task.head_field "
            "and task.tail_field name the fields to read"
        )
    begin, end = pair
    if not 0 <= begin < end <= length:
        raise DataError(f"{where}: {name}: {pair}: is no part of the {length} {unit}; the end is not counted in")
    return begin, end


def _marked(
    section: RelationExtractionSection, where: str, text: str, places: Sequence[tuple[int, int]], label: str
) -> Related:
    """With markers around both entities, and where they are."""
    order = sorted(range(2), key=lambda one: places[one])
    parts, at, markers = [], 0, {}
    for one in order:
        begin, end = places[one]
        front, behind = section.markers[2 * one], section.markers[2 * one + 1]
        before = text[at:begin]
        parts.append(before if not before or before[-1].isspace() else before + " ")
        markers[one] = len("".join(parts))
        parts.append(f"{front} {text[begin:end]} {behind}")
        at = end
        if at < len(text) and not text[at].isspace():
            parts.append(" ")
    whole = "".join(parts).rstrip()
    return Related(where, "".join((*parts, text[at:])), markers[0], min(markers.values()), len(whole), label)
