"""Fine-tuning files as rows of tokens, and what there is to say of them. No torch: preflight and ranks read alike."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import ConfigError, DataError
from megatrain.base.progress import Progress
from megatrain.config import FinetuneConfig
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_rows import Mistakes, ReadRow, T, all_usable, usable
from megatrain.data.examples.learnt import learnt_tokens
from megatrain.data.examples.packing import Example, PackedRow, pack, used_tokens
from megatrain.data.examples.prompt_completion import Pair, PairReader
from megatrain.data.text.inputs import find_inputs
from megatrain.data.text.prompts import EncodedPair, PromptEncoder
from megatrain.data.text.rows import read_rows
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.model.architecture import ModelSection
from megatrain.tasks.sft.section import SFTSection

MANY_EPOCHS = 10  # from there on, a warning: published fine-tunings mostly make 1 to 5
_AT_ONCE = 1024


@dataclass(slots=True)
class FileReport:
    """What became of one file's examples."""

    path: str
    sequence_length: int
    examples: int = 0
    turns: int = 0  # of the assistant, in dialogues
    unmarked: int = 0  # dialogues whose template does not mark them
    dropped: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0
    prompt_tokens_cut: int = 0
    response_tokens_cut: int = 0
    turns_cut: int = 0  # turns of the assistant of which nothing is left

    def warning(self) -> str | None:
        """What was cut or dropped, or None."""
        if self.dropped:
            return (
                f"{self.path}: {self.dropped:,} of {self.examples:,} examples are longer than "
                f"{self.sequence_length} tokens and are dropped (task.truncation: drop)"
            )
        if not self.prompts_cut and not self.responses_cut:
            return None
        parts = []
        if self.prompts_cut:
            parts.append(f"{self.prompts_cut:,} lose {self.prompt_tokens_cut:,} tokens at the start of their prompts")
        if self.responses_cut:
            parts.append(
                f"{self.responses_cut:,} lose {self.response_tokens_cut:,} tokens at the end of their responses"
                + (f" ({self.turns_cut:,} whole turns of the assistant)" if self.turns_cut else "")
            )
        return (
            f"{self.path}: of {self.examples:,} examples, cut to {self.sequence_length} tokens, {' and '.join(parts)}. "
            "Raise finetune.sequence_length, or set task.truncation: drop"
        )


R = TypeVar("R", bound=FileReport)
T_contra = TypeVar("T_contra", contravariant=True)
R_contra = TypeVar("R_contra", contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """All examples of some files, packed; `files` says what became of each file's."""

    rows: Sequence[PackedRow]
    files: Sequence[FileReport]
    sequence_length: int
    parts: int = 1  # packed documents of an example

    @property
    def examples(self) -> int:
        return sum(file.examples - file.dropped for file in self.files)

    @property
    def tokens(self) -> int:
        """Without padding."""
        return used_tokens(self.rows)

    def epochs(self, config: FinetuneConfig, progress: Progress) -> float:
        """How often the rows are read by the run's end, seen from `progress`."""
        return (progress.samples + config.samples_left(progress)) / len(self.rows)

    def describe(self, config: FinetuneConfig, progress: Progress) -> str:
        """The examples, and how often they are read, in a line."""
        padding = 1 - self.tokens / (len(self.rows) * self.sequence_length)
        return (
            f"{self.examples:,} examples ({self.tokens:,} tokens) in {len(self.rows):,} rows of "
            f"{self.sequence_length}, {padding:.0%} padding: {progress.step + config.steps_left(progress):,} steps are "
            f"{self.epochs(config, progress):.3g} epochs"
        )

    def notes(self) -> list[str]:
        """What was learnt of dialogues, and how it was found."""
        turns, unmarked = (sum(getattr(file, name) for file in self.files) for name in ("turns", "unmarked"))
        if not turns:
            return []
        how = (
            "found by rendering each dialogue up to an answer and up to its end, as the chat template has no "
            "{% generation %} marks"
            if unmarked
            else "as the chat template marks them"
        )
        return [f"{turns:,} turns of the assistant are learnt, {how}"]

    def warnings(self) -> list[str]:
        return [text for file in self.files if (text := file.warning())]


def read_example_set(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    section: SFTSection,
    *,
    template: ChatTemplate | None = None,
    sequence_length: int,
    model: ModelSection,
) -> ExampleSet:
    """Read, encode and pack the examples of files, folders and glob patterns, in their order.

    Args:
        template: the tokenizer's, for messages.
        model: whose embedding has to have all tokens.

    Raises:
        DataError: a file cannot be read, or examples are unusable; names the file and line of each, up to a limit.
        ConfigError: a sequence has no room for an example.
    """
    encoder = ExampleEncoder(tokenizer, section, sequence_length=sequence_length, vocab_size=model.padded_vocab_size)
    rows, files = packed(paths, PairReader(section, template).pair, encoder, FileReport, sequence_length)
    return ExampleSet(rows=rows, files=files, sequence_length=sequence_length)


class Encoder(Protocol[T_contra, R_contra]):
    """Of what rows are, the examples that fit into a sequence."""

    pad_id: int

    def examples(self, rows: Iterator[T_contra], report: R_contra, mistakes: Mistakes) -> Iterator[Example]:
        """The usable ones; counts them in `report`, and adds to `mistakes` what is wrong with the others."""
        ...


def packed(
    paths: Sequence[str],
    read: ReadRow[T],
    encoder: Encoder[T, R],
    report: Callable[[str, int], R],
    sequence_length: int,
    *,
    together: int = 1,
) -> tuple[list[PackedRow], list[R]]:
    """Read, encode and pack the examples of files, folders and glob patterns, in their order.

    Args:
        together: so many of the encoder's examples are one of the file, and stay in one row.
    """
    examples, files = encoded_examples(paths, read, encoder, report, sequence_length)
    return pack(examples, sequence_length, encoder.pad_id, together=together), files


def encoded_examples(
    paths: Sequence[str],
    read: ReadRow[T],
    encoder: Encoder[T, R],
    report: Callable[[str, int], R],
    sequence_length: int,
) -> tuple[list[Example], list[R]]:
    """The examples of files, folders and glob patterns, in their order.

    Args:
        read: what a row is.
        report: of a file and the sequence length: what is told of it.

    Raises:
        DataError: a file cannot be read, or examples are unusable; names the file and line of each, up to a limit.
    """
    mistakes = Mistakes()
    examples: list[Example] = []
    files: list[R] = []
    for file in find_inputs(paths).inputs:
        files.append(report(str(file), sequence_length))
        examples += encoder.examples(usable(read_rows(file), read, mistakes), files[-1], mistakes)
        if not files[-1].examples:
            mistakes.add_empty(str(file))
    mistakes.demand_none()
    if not examples:
        raise DataError(f"{', '.join(paths)}: all {sum(file.examples for file in files):,} examples are dropped")
    return examples, files


def padding_of(tokenizer: Tokenizer, model_rows: int) -> int:
    """Padding is no target and nothing attends to it: any id that the embedding has will do."""
    return tokenizer.pad_id if tokenizer.pad_id < model_rows else tokenizer.eos_id


def check_rows(paths: Sequence[str], section: SFTSection) -> None:
    """Read every row, for when there is no tokenizer to encode it with.

    Raises:
        DataError: as `read_example_set`, as far as that can be known.
    """
    for _ in all_usable(paths, PairReader(section, None, templates_known=False).pair):
        pass


class ExampleEncoder:
    """Pairs -> examples that fit into a sequence: what the tokenizer puts in front, prompt, response, end of text.

    Raises:
        DataError: the end of text lies outside of the model's embedding.
        ConfigError: a sequence has no room for an example.
    """

    def __init__(self, tokenizer: Tokenizer, section: SFTSection, *, sequence_length: int, vocab_size: int) -> None:
        self._encoder = PromptEncoder(tokenizer, special_tokens=section.special_tokens)
        self._eos_id = tokenizer.eos_id
        self._truncation = section.truncation
        self._sequence_length = sequence_length
        self._vocab_size = vocab_size
        ends = {tokenizer.eos_id, *self._encoder.prefix, *self._encoder.suffix}
        if outside := [number for number in ends if number >= vocab_size]:
            raise DataError(
                f"{tokenizer.name}: the token {self._token(outside[0])} lies outside of the model's embedding of "
                f"{vocab_size} rows; give the tokenizer that the model was trained with"
            )
        if sequence_length < len(self._encoder.prefix) + 2:
            raise ConfigError(
                f"finetune.sequence_length: {sequence_length}: must be at least {len(self._encoder.prefix) + 2}: "
                f"the tokenizer puts {len(self._encoder.prefix)} tokens in front of each example"
            )
        self.pad_id = padding_of(tokenizer, vocab_size)

    def examples(self, pairs: Iterator[Pair], report: FileReport, mistakes: Mistakes) -> Iterator[Example]:
        """The usable examples; counts them in `report`, and adds to `mistakes` what is wrong with the others."""
        while batch := list(itertools.islice(pairs, _AT_ONCE)):
            report.examples += len(batch)
            for pair, found in zip(batch, self.encoded(batch), strict=True):
                try:
                    example = self.fitted(pair, found, report)
                except DataError as error:
                    mistakes.add(error)
                    continue
                if example is not None:
                    yield example

    def encoded(self, pairs: Sequence[Pair]) -> Iterator[EncodedPair | DataError]:
        """Of each pair; an error in the place of one that cannot be encoded."""
        return self._encoder.pairs([(pair.prompt, pair.response) for pair in pairs])

    def fitted(self, pair: Pair, encoded: EncodedPair | DataError, report: FileReport) -> Example | None:
        """The example, or None where it is dropped. Raises DataError, naming the place, where it is unusable."""
        if isinstance(encoded, DataError):
            raise DataError(f"{pair.where}: {encoded}")
        tokens, split = encoded.tokens, encoded.prompt_tokens
        learnt = np.arange(len(tokens)) >= split
        if pair.spans is not None:
            ends = None if pair.marked else self._encoder.special_ids
            learnt = learnt_tokens(tokens, encoded.offsets, pair.prompt + pair.response, pair.spans, ends=ends)
            report.turns += len(pair.spans)
            report.unmarked += not pair.marked
            split = int(learnt.argmax()) if learnt.any() else len(tokens)
        if split == len(tokens):
            raise DataError(f"{pair.where}: the response has no token of this tokenizer: nothing to learn")
        if int(tokens.max()) >= self._vocab_size:
            raise DataError(
                f"{pair.where}: holds the token {self._token(int(tokens.max()))}, which lies outside of the model's "
                f"embedding of {self._vocab_size} rows"
            )
        head = [] if pair.templated else self._encoder.prefix_of(tokens[: len(self._encoder.prefix)].tolist())
        tail = self._ending(pair, tokens[learnt])
        room = self._sequence_length - len(head)
        if len(tokens) + len(tail) > room:
            if self._truncation == "error":
                raise DataError(
                    f"{pair.where}: has {len(head) + len(tokens) + len(tail)} tokens, more than "
                    f"finetune.sequence_length ({self._sequence_length})"
                )
            if self._truncation == "drop":
                report.dropped += 1
                return None
        several = len(pair.spans or ()) > 1
        prompt, response, tail = _cut(tokens[:split], tokens[split:], tail, room, report, several=several)
        kept = split + len(response)
        report.turns_cut += sum(not (encoded.offsets[:kept, 1] > begin).any() for begin, _ in pair.spans or ())
        front = len(head) + len(prompt)
        return Example(
            np.concatenate((head, prompt, response, tail)).astype(np.int32),
            front,
            learnt=np.concatenate((np.zeros(front, np.bool_), learnt[split:kept], np.ones(len(tail), np.bool_))),
        )

    def _ending(self, pair: Pair, response: NDArray[np.int32]) -> list[int]:
        """What is learnt behind a response: what the tokenizer puts there, and one end of text."""
        if pair.templated and not self._encoder.special_ids.isdisjoint(response.tolist()):
            return []  # the template ends a turn itself
        if pair.spans is not None and (pair.marked or pair.spans[-1][1] < len(pair.prompt + pair.response)):
            return []  # the template's word; or a last turn that is not learnt
        tail = [] if pair.templated else self._encoder.suffix
        if not tail or tail[-1] != self._eos_id:
            tail = [*tail, self._eos_id]
        return tail[1:] if tail[0] == int(response[-1]) == self._eos_id else tail

    def _token(self, number: int) -> str:
        return f"{self._encoder.text_of(number)!r} (id {number})"


def _cut(
    prompt: NDArray[np.int32],
    response: NDArray[np.int32],
    tail: list[int],
    room: int,
    report: FileReport,
    *,
    several: bool,
) -> tuple[NDArray[np.int32], NDArray[np.int32], list[int]]:
    """Prompt, response and ending within `room` tokens. The prompt loses its start. Where the response alone is too
    long, or has `several` turns, the prompt keeps up to half of the room, the response loses its end, and no ending is
    taught behind a cut."""
    left = room - len(response) - len(tail)
    kept = min(len(prompt), left if left > 0 and not several else max(left, room // 2))
    report.prompts_cut += kept < len(prompt)
    report.prompt_tokens_cut += len(prompt) - kept
    prompt = prompt[len(prompt) - kept :]
    room -= kept
    if len(response) + len(tail) <= room:
        return prompt, response, tail
    cut = response[:room]
    report.responses_cut += 1
    report.response_tokens_cut += len(response) + len(tail) - len(cut)
    return prompt, cut, []
