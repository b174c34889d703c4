"""What a model is fed: batches of rows as tensors. B sequences in a micro-batch, S tokens in a sequence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORE_INDEX = -100  # torch's default `ignore_index`: a position without a target


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence: S + 1 tokens, and where documents end within the first S (one past each EOS).

    `targets` is of a row that was packed by best fit: how many of its labels have a target. Where a piece ends, the
    next token belongs to another document, perhaps to its middle; behind the last piece there may be padding.
    """

    tokens: NDArray[np.integer]
    ends: NDArray[np.int64]
    targets: int | None = None


class Rows(NamedTuple):
    """Several sequences of one length: tokens [N, S + 1], and of each its document ends and targets; see `Row`."""

    tokens: NDArray[np.integer]
    ends: list[NDArray[np.int64]]
    targets: list[int | None]

    def part(self, first: int, last: int) -> "Rows":
        return Rows(self.tokens[first:last], self.ends[first:last], self.targets[first:last])


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of one data-parallel rank; a loader makes it on the CPU.

    Labels are the inputs shifted by one. They are kept where documents meet: the first token of a document is then
    predicted from the EOS before it, which teaches the model how documents begin. In packed rows they are not.
    """

    input_ids: Tensor  # [B, S] int64
    labels: Tensor  # [B, S] int64, IGNORE_INDEX where there is no target
    position_ids: Tensor  # [B, S] int64, from 0 in each document, or in each row when attention crosses documents
    document_ids: Tensor | None  # [B, S] int32: equal ids may attend to each other; None when attention may cross
    # [documents + 1] int32: where each document begins in the flattened batch, and B·S; what varlen attention takes
    cu_seqlens: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device; a copy from pinned memory does not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from where a GPU copies while the CPU goes on. Needs CUDA."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items() if tensor is not None})


def assemble(rows: Sequence[Row], *, attend_across_documents: bool) -> Batch:
    """Stack rows of one length into a batch."""
    stacked = Rows(np.stack([row.tokens for row in rows]), [row.ends for row in rows], [row.targets for row in rows])
    return assemble_rows(stacked, attend_across_documents=attend_across_documents)


def assemble_rows(rows: Rows, *, attend_across_documents: bool, sequence_length: int | None = None) -> Batch:
    """A batch of rows.

    Args:
        sequence_length: cut each row into sequences of so many tokens, which divides its length; default: one sequence
            a row. No token is lost: the last target of a sequence is the first input of the next.
    """
    size, length = rows.tokens.shape[0], rows.tokens.shape[1] - 1
    shape = (-1, sequence_length or length)
    starts, cu_seqlens = None, None
    if not attend_across_documents:
        starts = _starts(rows.ends, size, length).reshape(shape)
        starts[:, 0] = True
        cu_seqlens = torch.from_numpy(np.append(np.flatnonzero(starts), starts.size).astype(np.int32))
    return Batch(
        input_ids=torch.from_numpy(rows.tokens[:, :-1].astype(np.int64).reshape(shape)),
        labels=torch.from_numpy(_labels(rows).reshape(shape)),
        position_ids=torch.from_numpy(_positions(starts, (size * length // shape[1], shape[1]))),
        document_ids=None if starts is None else torch.from_numpy(np.cumsum(starts, axis=1, dtype=np.int32) - 1),
        cu_seqlens=cu_seqlens,
    )


def without_targets(size: int, sequence_length: int, *, attend_across_documents: bool) -> Batch:
    """A batch that adds nothing to any loss, for a rank that has run out of rows."""
    nothing = Row(np.zeros(sequence_length + 1, dtype=np.uint16), np.empty(0, dtype=np.int64))
    batch = assemble([nothing] * size, attend_across_documents=attend_across_documents)
    batch.labels.fill_(IGNORE_INDEX)
    return batch


def _labels(rows: Rows) -> NDArray[np.int64]:
    """The inputs shifted by one, int64 [N, S]; in packed rows IGNORE_INDEX behind each piece."""
    labels = rows.tokens[:, 1:].astype(np.int64)
    for number, (ends, targets) in enumerate(zip(rows.ends, rows.targets, strict=True)):
        if targets is None:
            continue
        labels[number, ends - 1] = IGNORE_INDEX
        if targets < labels.shape[1] - len(ends):  # padding
            labels[number, ends[-1] :] = IGNORE_INDEX
    return labels


def _starts(ends: Sequence[NDArray[np.int64]], size: int, length: int) -> NDArray[np.bool_]:
    """Whether a document begins at a position because one ended before it, bool [size, length]."""
    starts = np.zeros((size, length + 1), dtype=np.bool_)  # an end may lie at the row's end: it starts nothing here
    starts[np.repeat(np.arange(size), [len(row) for row in ends]), np.concatenate(ends).astype(np.int64)] = True
    return np.ascontiguousarray(starts[:, :-1])


def _positions(starts: NDArray[np.bool_] | None, shape: tuple[int, int]) -> NDArray[np.int64]:
    columns = np.broadcast_to(np.arange(shape[1], dtype=np.int64), shape)
    if starts is None:
        return columns.copy()
    return columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
