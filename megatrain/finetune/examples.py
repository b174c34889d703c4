"""Prompt and response pairs as rows of tokens.

Examples are short beside a training sequence, so several share a row, each a document of its own that attention does
not leave. The loss is on responses, and on the end of text after each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatrain.data.loading.batch import IGNORE_INDEX, Batch, Row, assemble
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.finetune.pairs import read_pairs


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens of prompt, response and end of text; `prompt_tokens` of them are the prompt."""

    tokens: list[int]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One sequence of S + 1 tokens, and which of them are to be predicted."""

    row: Row
    is_target: NDArray[np.bool_]  # [S + 1]

    @property
    def targets(self) -> int:
        return int(self.is_target[1:].sum())


def read_examples(
    paths: Sequence[str], tokenizer: Tokenizer, *, prompt_field: str, response_field: str, sequence_length: int
) -> list[Example]:
    """Every pair of the jsonl files, encoded.

    A pair that is longer than a sequence loses the start of its prompt, and if need be the end of its response.

    Raises:
        DataError: a file is missing or empty, or a line is not an object with both fields as text.
    """
    pairs = [pair for path in paths for pair in read_pairs(Path(path), prompt_field, response_field)]
    prompts = tokenizer.encode_batch([prompt for prompt, _ in pairs])
    responses = tokenizer.encode_batch([response for _, response in pairs])
    examples = []
    for prompt, response in zip(prompts, responses, strict=True):
        answer = [*map(int, response[: sequence_length - 1]), tokenizer.eos_id]
        room = sequence_length - len(answer)
        question = [*map(int, prompt)][-room:] if room else []
        examples.append(Example(question + answer, len(question)))
    return examples


def pack(examples: Sequence[Example], sequence_length: int, pad_id: int) -> list[PackedRow]:
    """Fill rows with examples in their order, starting a new row when the next one does not fit."""
    rows: list[PackedRow] = []
    waiting: list[Example] = []
    used = 0
    for example in examples:
        if used + len(example.tokens) > sequence_length and waiting:
            rows.append(_row(waiting, sequence_length, pad_id))
            waiting, used = [], 0
        waiting.append(example)
        used += len(example.tokens)
    if waiting:
        rows.append(_row(waiting, sequence_length, pad_id))
    return rows


def batch_of(rows: Sequence[PackedRow]) -> Batch:
    """int64 [B, S] inputs, and labels where a response token follows."""
    batch = assemble([packed.row for packed in rows], attend_across_documents=False)
    for number, packed in enumerate(rows):
        batch.labels[number].numpy()[~packed.is_target[1:]] = IGNORE_INDEX
    return batch


def _row(examples: Sequence[Example], sequence_length: int, pad_id: int) -> PackedRow:
    tokens = np.full(sequence_length + 1, pad_id, dtype=np.int64)
    is_target = np.zeros(sequence_length + 1, dtype=np.bool_)
    ends, at = [], 0
    for example in examples:
        end = at + len(example.tokens)
        tokens[at:end] = example.tokens
        is_target[at + example.prompt_tokens : end] = True
        ends.append(end)
        at = end
    return PackedRow(Row(tokens, np.array(ends, dtype=np.int64)), is_target)
