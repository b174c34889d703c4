"""What a model is fed: batches of rows as tensors. B sequences in a micro-batch, S tokens in a sequence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatrain.data.loading.tensor_batch import SPLIT_SEQUENCE, TensorBatch

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
class Batch(TensorBatch):
    """A micro-batch for a causal language model.

    Labels are the inputs shifted by one. They are kept where documents meet: the first token of a document is then
    predicted from the EOS before it, which teaches the model how documents begin. In packed rows they are not.
    """

    input_ids: Tensor = field(metadata=SPLIT_SEQUENCE)  # [B, S] int64
    labels: Tensor = field(metadata=SPLIT_SEQUENCE)  # [B, S] int64, IGNORE_INDEX where there is no target
    # [B, S] int64, from 0 in each document, or in each row when attention crosses documents
    position_ids: Tensor = field(metadata=SPLIT_SEQUENCE)
    # [documents + 1] int32: where each document begins in the flattened batch, and B·S; None when attention may cross.
    # Which document a position is in, all ranks of a sequence need to know.
    cu_seqlens: Tensor | None = None
    # [B, S] int64, which text of its example a token is of, where a model tells them apart; None: all are of the first
    token_types: Tensor | None = field(default=None, metadata=SPLIT_SEQUENCE)
    # [B, S] int64, where labels are classes: the same labels, given whole to every rank of a sequence
    whole_labels: Tensor | None = None
    # [E, K] fp32, of each example that has a label, in order: labels are then their numbers. Every rank of a sequence
    # needs them.
    example_targets: Tensor | None = None

    @property
    def document_ids(self) -> Tensor | None:
        """[B, S] int32: each position's document, counted from 0 in each sequence; for people and tests."""
        if self.cu_seqlens is None:
            return None
        places = torch.arange(self.input_ids.numel(), dtype=torch.int32, device=self.cu_seqlens.device)
        documents = torch.bucketize(places, self.cu_seqlens, right=True, out_int32=True).view(self.input_ids.shape)
        return documents - documents[:, :1]


def assemble(rows: Sequence[Row], *, attend_across_documents: bool) -> Batch:
    """A batch of rows of one length."""
    return assemble_rows(stacked(rows), attend_across_documents=attend_across_documents)


def stacked(rows: Sequence[Row]) -> Rows:
    return Rows(np.stack([row.tokens for row in rows]), [row.ends for row in rows], [row.targets for row in rows])


def assemble_rows(rows: Rows, *, attend_across_documents: bool, sequence_length: int | None = None) -> Batch:
    """A batch of rows.

    Args:
        sequence_length: cut each row into sequences of so many tokens, which divides its length; default: one sequence
            a row. No token is lost: the last target of a sequence is the first input of the next.
    """
    size, length = rows.tokens.shape[0], rows.tokens.shape[1] - 1
    cut = sequence_length or length
    shape = (size * length // cut, cut)
    input_ids, labels = (np.empty((size, length), np.int64) for _ in range(2))
    input_ids[:] = rows.tokens[:, :-1]
    labels[:] = rows.tokens[:, 1:]
    _mask_labels(labels, rows)
    position_ids, cu_seqlens = torch.arange(cut).repeat(shape[0], 1), None
    if not attend_across_documents:
        begins = _document_begins(rows.ends, shape, length)
        bounds = np.append(begins, size * length)
        position_ids = torch.from_numpy(_position_ids(bounds, np.empty(shape, np.int64)))
        cu_seqlens = torch.from_numpy(bounds.astype(np.int32))
    return Batch(
        input_ids=torch.from_numpy(input_ids.reshape(shape)),
        labels=torch.from_numpy(labels.reshape(shape)),
        position_ids=position_ids,
        cu_seqlens=cu_seqlens,
    )


def without_targets(size: int, sequence_length: int, *, attend_across_documents: bool) -> Batch:
    """A batch that adds nothing to any loss, for a rank that has run out of rows."""
    nothing = Row(np.zeros(sequence_length + 1, dtype=np.uint16), np.empty(0, dtype=np.int64))
    batch = assemble([nothing] * size, attend_across_documents=attend_across_documents)
    batch.labels.fill_(IGNORE_INDEX)
    return batch


def _mask_labels(labels: NDArray[np.int64], rows: Rows) -> None:
    """Packed rows have no target behind a piece: what follows is another document, or padding."""
    for number, (ends, targets) in enumerate(zip(rows.ends, rows.targets, strict=True)):
        if targets is None:
            continue
        labels[number, ends - 1] = IGNORE_INDEX
        if targets < labels.shape[1] - len(ends):  # padding
            labels[number, ends[-1] :] = IGNORE_INDEX


def _document_begins(ends: Sequence[NDArray[np.int64]], shape: tuple[int, int], length: int) -> NDArray[np.int64]:
    """Where a document, or what a sequence has of it, begins in the flattened batch; ascending."""
    total = shape[0] * shape[1]
    rows = np.repeat(np.arange(0, total, length), [len(row) for row in ends])
    behind = rows + np.concatenate(ends)  # at a row's end that is the next row's begin, or the batch's end
    return np.union1d(np.arange(0, total, shape[1]), behind[behind < total])


def _position_ids(bounds: NDArray[np.int64], out: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count from 0 between two bounds and the next: the sum of ones, less the length before at each bound."""
    flat = out.reshape(-1)
    flat.fill(1)
    flat[0] = 0
    flat[bounds[1:-1]] = 1 - np.diff(bounds)[:-1]
    np.cumsum(flat, out=flat)
    return out
