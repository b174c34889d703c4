"""What a model is fed: batches of rows as tensors. B sequences in a micro-batch, S tokens in a sequence."""

from collections.abc import Sequence
from dataclasses import dataclass

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

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device; a copy from pinned memory does not wait."""
        documents = None if self.document_ids is None else self.document_ids.to(device, non_blocking=True)
        input_ids, labels, position_ids = (
            tensor.to(device, non_blocking=True) for tensor in (self.input_ids, self.labels, self.position_ids)
        )
        return Batch(input_ids, labels, position_ids, documents)


def assemble(rows: Sequence[Row], *, attend_across_documents: bool) -> Batch:
    """Stack rows of one length into a batch."""
    tokens = torch.from_numpy(np.stack([row.tokens for row in rows]).astype(np.int64))
    size, length = len(rows), tokens.shape[1] - 1
    columns = np.arange(length, dtype=np.int64)
    if attend_across_documents:
        positions, documents = np.broadcast_to(columns, (size, length)).copy(), None
    else:
        positions, documents = np.empty((size, length), dtype=np.int64), np.empty((size, length), dtype=np.int32)
        for number, row in enumerate(rows):
            starts = np.concatenate([[0], row.ends])  # one may lie at the row's end: it starts nothing here
            documents[number] = np.searchsorted(row.ends, columns, side="right")
            positions[number] = columns - starts[documents[number]]
    labels = tokens[:, 1:].clone()
    for number, row in enumerate(rows):
        if row.targets is not None:
            labels[number, torch.from_numpy(row.ends - 1)] = IGNORE_INDEX
            if row.targets < length - len(row.ends):  # padding
                labels[number, row.ends[-1] :] = IGNORE_INDEX
    return Batch(
        input_ids=tokens[:, :-1].clone(),  # a batch of one would otherwise share its memory with the labels
        labels=labels,
        position_ids=torch.from_numpy(positions),
        document_ids=None if documents is None else torch.from_numpy(documents),
    )


def without_targets(size: int, sequence_length: int, *, attend_across_documents: bool) -> Batch:
    """A batch that adds nothing to any loss, for a rank that has run out of rows."""
    nothing = Row(np.zeros(sequence_length + 1, dtype=np.uint16), np.empty(0, dtype=np.int64))
    batch = assemble([nothing] * size, attend_across_documents=attend_across_documents)
    batch.labels.fill_(IGNORE_INDEX)
    return batch
