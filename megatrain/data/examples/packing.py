"""Examples as rows of tokens: several short ones share a row, each a document of its own that attention does not
leave. No torch: the launcher counts rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_LABEL = -100  # as data/loading/batch.py's IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens of prompt and response with what goes around them, int32 [n]; the first `prompt_tokens` are not
    learnt.

    Attributes:
        learnt: [n], where not all behind the prompt is.
        labels: [n], where what is learnt are classes and not the next tokens; NO_LABEL where there is none.
        token_types: [n], where there are several.
        values: [K], of the example as a whole: what its one label then stands for, whatever its number.
    """

    tokens: NDArray[np.int32]
    prompt_tokens: int
    labels: NDArray[np.int64] | None = None
    token_types: NDArray[np.int64] | None = None
    learnt: NDArray[np.bool_] | None = None
    values: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One sequence of S + 1 tokens, where its examples end, and which tokens are to be predicted; or the classes of its
    positions, see `Example`."""

    tokens: NDArray[np.int64]  # [S + 1]
    ends: NDArray[np.int64]  # [examples]
    is_target: NDArray[np.bool_]  # [S + 1]
    labels: NDArray[np.int64] | None = None  # [S]
    token_types: NDArray[np.int64] | None = None  # [S]
    values: NDArray[np.float32] | None = None  # [examples, K]; labels are then their numbers, from 0

    @property
    def targets(self) -> int:
        return int(self.is_target[1:].sum()) if self.labels is None else int((self.labels != NO_LABEL).sum())


def pack(examples: Sequence[Example], sequence_length: int, pad_id: int, *, together: int = 1) -> list[PackedRow]:
    """Fill rows with examples in their order, starting a new row when the next one does not fit.

    Args:
        together: so many in succession stay in one row.
    """
    rows: list[PackedRow] = []
    waiting: list[Example] = []
    used = 0
    for first in range(0, len(examples), together):
        group = examples[first : first + together]
        length = sum(len(example.tokens) for example in group)
        if used + length > sequence_length and waiting:
            rows.append(row_of(waiting, sequence_length, pad_id))
            waiting, used = [], 0
        waiting += group
        used += length
    if waiting:
        rows.append(row_of(waiting, sequence_length, pad_id))
    return rows


def digest(rows: Sequence[PackedRow]) -> str:
    """What a checkpoint remembers of its examples: 16 hexadecimal digits over tokens and targets."""
    if (known := getattr(rows, "digest", None)) is not None:  # of rows on a disk, which need not be read for it
        return str(known)
    found = hashlib.sha256()
    for row in rows:
        found.update(row.tokens.astype("<i8").tobytes())
        found.update(row.is_target.tobytes())
        for more in (row.labels, row.token_types):
            if more is not None:
                found.update(more.astype("<i8").tobytes())
        if row.values is not None:
            found.update(row.values.astype("<f4").tobytes())
    return found.hexdigest()[:16]


def used_tokens(rows: Sequence[PackedRow]) -> int:
    """Tokens that are no padding."""
    known = getattr(rows, "used", None)
    return sum(int(row.ends[-1]) for row in rows) if known is None else int(known)


def row_of(examples: Sequence[Example], sequence_length: int, pad_id: int) -> PackedRow:
    """Examples behind each other, and padding."""
    tokens = np.full(sequence_length + 1, pad_id, dtype=np.int64)
    is_target = np.zeros(sequence_length + 1, dtype=np.bool_)
    ends, at = [], 0
    for example in examples:
        end = at + len(example.tokens)
        tokens[at:end] = example.tokens
        is_target[at + example.prompt_tokens : end] = True
        if example.learnt is not None:
            is_target[at:end] = example.learnt
        ends.append(end)
        at = end
    labels = _joined([example.labels for example in examples], sequence_length, NO_LABEL)
    values = [example.values for example in examples if example.values is not None]
    if values and labels is not None:
        labels[labels != NO_LABEL] = np.arange(len(values))
    return PackedRow(
        tokens,
        np.array(ends, dtype=np.int64),
        is_target if examples[0].labels is None else np.zeros_like(is_target),
        labels,
        _joined([example.token_types for example in examples], sequence_length, 0),
        np.stack(values) if values else None,
    )


def _joined(parts: Sequence[NDArray[np.int64] | None], sequence_length: int, fill: int) -> NDArray[np.int64] | None:
    """Of all examples of a row, or of none."""
    given = [part for part in parts if part is not None]
    if not given:
        return None
    row = np.full(sequence_length, fill, dtype=np.int64)
    joined = np.concatenate(given)
    row[: len(joined)] = joined
    return row
