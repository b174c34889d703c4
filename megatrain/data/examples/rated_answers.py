"""Rows of answers that are desirable or not, as examples; a row with a chosen and a rejected answer is two of them.

Beside each row of tokens lies another one, in which every answer stands behind another prompt than its own: on them KTO
estimates how far the model has gone from the reference (arXiv 2402.01306, section 4.1). No torch: preflight and ranks
read alike.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from megatrain.base.errors import DataError
from megatrain.data.examples import preference_pairs as pairs
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_rows import Mistakes, all_usable, field_of, names_of
from megatrain.data.examples.example_set import ExampleEncoder, ExampleSet, FileReport, encoded_examples
from megatrain.data.examples.packing import Example, PackedRow, row_of
from megatrain.data.examples.prompt_completion import Pair
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.model.architecture import ModelSection
from megatrain.tasks.preference.section import PreferenceSection
from megatrain.tasks.sft.section import SFTSection

_AT_ONCE = 512
_ALONE = 2  # answers of which nothing is asked: data preview reads row by row


class Answer(NamedTuple):
    pair: Pair
    desirable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedSet(ExampleSet):
    """
    Attributes:
        beside: as many rows, each of as many answers; none where all answers are to one prompt.
        desirable: how many answers are.
    """

    beside: list[PackedRow]
    desirable: int

    def notes(self) -> list[str]:
        others = self.examples - self.desirable
        return [
            f"{self.desirable:,} answers are desirable, {others:,} are not; arXiv 2402.01306 finds the former times "
            "task.desirable_weight best at 1 to 1.33 of the latter times task.undesirable_weight"
        ]


def read_preferences_of_loss(
    paths: Sequence[str], tokenizer: Tokenizer, section: PreferenceSection, **options: Any
) -> ExampleSet:
    """`read_rated` for kto, else `preference_pairs.read_preferences`."""
    read = read_rated if section.loss == "kto" else pairs.read_preferences
    return read(paths, tokenizer, section, **options)


def check_rows_of_loss(paths: Sequence[str], section: PreferenceSection) -> None:
    """Read every row, for when there is no tokenizer to encode it with.

    Raises:
        DataError: rows are unusable; names file and line of each, up to a limit.
    """
    if section.loss != "kto":
        return pairs.check_rows(paths, section)
    for _ in all_usable(paths, AnswerReader(section, None, templates_known=False).answers):
        pass
    return None


class AnswerReader(pairs.PreferenceReader):
    """Turns rows into answers: one, or the chosen and the rejected one."""

    def answers(self, where: str, row: Mapping[str, Any]) -> tuple[Answer, ...]:
        """Raises DataError, naming place and field, where the row has no answer with a rating."""
        section = self._section
        if field_of(row, section.completion_field) is None and field_of(row, section.chosen_field) is not None:
            preferred = self.pair(where, row)
            return Answer(preferred.chosen, True), Answer(preferred.rejected, False)
        rating = field_of(row, section.label_field)
        if not isinstance(rating, bool) and rating not in (0, 1):
            raise DataError(
                f"{where}: {section.label_field}: must be true or false: whether {section.completion_field} is "
                f"desirable; the row has {names_of(row)}. task.label_field names the field to read"
            )
        (pair,) = self.answers_to(where, row, (section.completion_field,))
        return (Answer(pair, bool(rating)),)


def read_rated(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    section: PreferenceSection,
    *,
    template: ChatTemplate | None = None,
    sequence_length: int,
    model: ModelSection,
) -> RatedSet:
    """As `example_set.read_example_set`.

    Raises:
        DataError: besides, all answers are to one prompt.
    """
    encoder = _AnswerEncoder(tokenizer, section, sequence_length=sequence_length, vocab_size=model.padded_vocab_size)
    read = AnswerReader(section, template).answers
    examples, files = encoded_examples(paths, read, encoder, FileReport, sequence_length)
    others = mismatched(examples, sequence_length)
    if not others and len(examples) > _ALONE:
        raise DataError(
            f"{', '.join(paths)}: all answers are to one prompt, and the KL term of kto is estimated on answers to "
            "other prompts; add examples of another one"
        )
    rows, beside = packed_beside(examples, others or examples, sequence_length, encoder.pad_id)
    return RatedSet(
        rows=rows,
        files=files,
        sequence_length=sequence_length,
        beside=beside if others else [],
        desirable=sum(bool(one.values is not None and one.values[0]) for one in examples),
    )


def mismatched(examples: Sequence[Example], sequence_length: int) -> list[Example]:
    """Behind each example's prompt, the answer of the nearest example before it that has another one, the first ones'
    found from the end; cut to a sequence. Nothing where there is one prompt."""
    prompts = [one.tokens[: one.prompt_tokens].tobytes() for one in examples]
    before = next((n for n in reversed(range(len(examples))) if prompts[n] != prompts[0]), None)
    if before is None:
        return []
    found = []
    for number, one in enumerate(examples):
        if number and prompts[number - 1] != prompts[number]:
            before = number - 1
        other, kept = examples[before], one.prompt_tokens
        tokens = np.concatenate((one.tokens[:kept], other.tokens[other.prompt_tokens :]))[:sequence_length]
        learnt = None
        if other.learnt is not None:
            learnt = np.concatenate((np.zeros(kept, np.bool_), other.learnt[other.prompt_tokens :]))[:sequence_length]
        found.append(Example(tokens, kept, learnt=learnt))
    return found


def packed_beside(
    examples: Sequence[Example], others: Sequence[Example], sequence_length: int, pad_id: int
) -> tuple[list[PackedRow], list[PackedRow]]:
    """Rows of both, of the same numbers of each: a new one begins where either does not fit."""
    rows: tuple[list[PackedRow], list[PackedRow]] = ([], [])
    waiting: tuple[list[Example], list[Example]] = ([], [])
    used = [0, 0]

    def close() -> None:
        for made, held in zip(rows, waiting, strict=True):
            made.append(row_of(held, sequence_length, pad_id))
            held.clear()
        used[:] = [0, 0]

    for both in zip(examples, others, strict=True):
        lengths = [len(one.tokens) for one in both]
        if waiting[0] and any(at + length > sequence_length for at, length in zip(used, lengths, strict=True)):
            close()
        for column, one in enumerate(both):
            waiting[column].append(one)
            used[column] += lengths[column]
    close()
    return rows


class _AnswerEncoder:
    """Answers -> the examples that fit into a sequence, each with its rating."""

    def __init__(
        self, tokenizer: Tokenizer, section: PreferenceSection, *, sequence_length: int, vocab_size: int
    ) -> None:
        self._one = ExampleEncoder(
            tokenizer,
            SFTSection(special_tokens=section.special_tokens, truncation=section.truncation),
            sequence_length=sequence_length,
            vocab_size=vocab_size,
        )
        self.pad_id = self._one.pad_id

    def examples(self, rows: Iterator[tuple[Answer, ...]], report: FileReport, mistakes: Mistakes) -> Iterator[Example]:
        """The usable ones; counts answers in `report`."""
        answers = itertools.chain.from_iterable(rows)
        while batch := list(itertools.islice(answers, _AT_ONCE)):
            report.examples += len(batch)
            for answer, encoded in zip(batch, self._one.encoded([one.pair for one in batch]), strict=True):
                of_one = FileReport(report.path, report.sequence_length)  # its turns are no turns of a dialogue
                try:
                    example = self._one.fitted(answer.pair, encoded, of_one)
                    if example is not None and not example.prompt_tokens:
                        raise DataError(
                            f"{answer.pair.where}: has no prompt: the first token of an answer needs one before it"
                        )
                except DataError as error:
                    mistakes.add(error)
                    continue
                report.dropped += of_one.dropped
                if example is not None:
                    yield replace(example, values=np.array([answer.desirable], dtype=np.float32))
