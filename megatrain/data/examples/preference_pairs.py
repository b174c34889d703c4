"""Rows of preferences as pairs of examples: a prompt with the chosen answer, and with the rejected one.

A pair lies in one row of tokens, the chosen example in front. No torch: preflight and ranks read alike.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from megatrain.base.errors import DataError
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.conversation import conversation, tools_of
from megatrain.data.examples.example_rows import Mistakes, all_usable, field_of, names_of
from megatrain.data.examples.example_set import ExampleEncoder, ExampleSet, FileReport, packed
from megatrain.data.examples.packing import Example
from megatrain.data.examples.prompt_completion import Pair, checked
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.model.architecture import ModelSection
from megatrain.tasks.preference.section import PreferenceSection
from megatrain.tasks.sft.section import SFTSection

_AT_ONCE = 512
_ANY_LENGTH = 1 << 40
# words of a message, by how many answers a row has
_ARE_MESSAGES = {1: "is the answer messages", 2: "are both answers messages"}
_FIELDS = {1: "completion_field and label_field", 2: "chosen_field and rejected_field"}


class Preferred(NamedTuple):
    chosen: Pair
    rejected: Pair


class PreferenceReader:
    """Turns rows into pairs.

    Args:
        template: the tokenizer's, for messages.
        templates_known: False: where there is no tokenizer yet, messages are not rendered.
    """

    def __init__(
        self, section: PreferenceSection, template: ChatTemplate | None, *, templates_known: bool = True
    ) -> None:
        self._section, self._template, self._known = section, template, templates_known

    def pair(self, where: str, row: Mapping[str, Any]) -> Preferred:
        """Raises DataError, naming place and field, where the row has no two answers to one prompt."""
        names = (self._section.chosen_field, self._section.rejected_field)
        found = self.answers_to(where, row, names)
        if found[0].templated and found[0].prompt != found[1].prompt:
            raise DataError(f"{where}: {names[0]} and {names[1]} answer different dialogues")
        if found[0].response == found[1].response and (self._known or not found[0].templated):
            raise DataError(f"{where}: {names[0]} and {names[1]} are the same: nothing to prefer; leave the line out")
        return Preferred(*found)

    def answers_to(self, where: str, row: Mapping[str, Any], names: Sequence[str]) -> list[Pair]:
        """What fields of these names answer to the row's prompt. Raises DataError as `pair`."""
        prompt_field = self._section.prompt_field
        prompt, answers = field_of(row, prompt_field), [field_of(row, name) for name in names]
        if all(isinstance(answer, list) for answer in answers):
            return [self._dialogue(where, name, prompt, of, row) for name, of in zip(names, answers, strict=True)]
        for name, value in ((prompt_field, prompt), *zip(names, answers, strict=True)):
            if not isinstance(value, str):
                raise DataError(
                    f"{where}: {name}: is not there as text, nor {_ARE_MESSAGES[len(names)]}; the row has "
                    f"{names_of(row)}. task.prompt_field, {_FIELDS[len(names)]} name the fields to read"
                )
        return [
            checked(Pair(where, str(prompt), str(answer)), prompt_field, name)
            for name, answer in zip(names, answers, strict=True)
        ]

    def _dialogue(self, where: str, field: str, prompt: object, answer: list[Any], row: Mapping[str, Any]) -> Pair:
        before = prompt if isinstance(prompt, list) else []
        if isinstance(prompt, str) and len(answer) == 1:
            before = [{"role": "user", "content": prompt}]
        messages = conversation(f"{where}: {field}", [*before, *answer])
        if not self._known:
            return Pair(where, "", "unknown", templated=True)
        if self._template is None:
            raise DataError(
                f"{where}: {field}: the tokenizer has no chat template (chat_template.jinja beside it, or "
                "chat_template in tokenizer_config.json); add one, or write the answers as text"
            )
        try:
            text, response = self._template.pair(messages, tools=tools_of(where, row))
        except DataError as error:
            raise DataError(f"{where}: {field}: {error}") from None
        spans = ((len(text), len(text + response)),)
        return checked(Pair(where, text, response, templated=True, spans=spans), field, field)


def read_preferences(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    section: PreferenceSection,
    *,
    template: ChatTemplate | None = None,
    sequence_length: int,
    model: ModelSection,
) -> ExampleSet:
    """As `example_set.read_example_set`; a report counts pairs."""
    encoder = _PairEncoder(tokenizer, section, sequence_length=sequence_length, vocab_size=model.padded_vocab_size)
    read = PreferenceReader(section, template).pair
    rows, files = packed(paths, read, encoder, FileReport, sequence_length, together=2)
    return ExampleSet(rows=rows, files=files, sequence_length=sequence_length, parts=2)


def check_rows(paths: Sequence[str], section: PreferenceSection) -> None:
    """Read every row, for when there is no tokenizer to encode it with.

    Raises:
        DataError: rows are unusable; names file and line of each, up to a limit.
    """
    for _ in all_usable(paths, PreferenceReader(section, None, templates_known=False).pair):
        pass


class _PairEncoder:
    """Pairs -> the two examples of each that fits into a sequence."""

    def __init__(
        self, tokenizer: Tokenizer, section: PreferenceSection, *, sequence_length: int, vocab_size: int
    ) -> None:
        self._one = ExampleEncoder(
            tokenizer,
            SFTSection(special_tokens=section.special_tokens),
            sequence_length=_ANY_LENGTH,
            vocab_size=vocab_size,
        )
        self.pad_id = self._one.pad_id
        self._sequence_length, self._truncation = sequence_length, section.truncation

    def examples(self, rows: Iterator[Preferred], report: FileReport, mistakes: Mistakes) -> Iterator[Example]:
        """Of each usable pair both, the chosen one first; counts pairs in `report`."""
        while batch := list(itertools.islice(rows, _AT_ONCE)):
            report.examples += len(batch)
            encoded = self._one.encoded([pair for preferred in batch for pair in preferred])
            for preferred in batch:
                both = [next(encoded) for _ in preferred]
                try:
                    of_one = FileReport(report.path, report.sequence_length)  # its turns are no turns of a dialogue
                    examples = [self._one.fitted(pair, of, of_one) for pair, of in zip(preferred, both, strict=True)]
                    fits = self._fits(preferred.chosen.where, [one for one in examples if one is not None])
                except DataError as error:
                    mistakes.add(error)
                    continue
                report.dropped += not fits
                if fits:
                    yield from (one for one in examples if one is not None)

    def _fits(self, where: str, examples: list[Example]) -> bool:
        chosen, rejected = examples
        if not (chosen.prompt_tokens and rejected.prompt_tokens):
            raise DataError(f"{where}: has no prompt: the first token of an answer needs one before it")
        if np.array_equal(chosen.tokens, rejected.tokens):
            raise DataError(f"{where}: both answers are the same tokens: nothing to prefer; leave the line out")
        total = len(chosen.tokens) + len(rejected.tokens)
        if total > self._sequence_length and self._truncation == "error":
            raise DataError(
                f"{where}: has {total} tokens in both answers with their prompts, more than finetune.sequence_length "
                f"({self._sequence_length})"
            )
        return total <= self._sequence_length
