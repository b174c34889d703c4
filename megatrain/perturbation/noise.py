"""The keys of the random numbers of a training step. B rows of a micro-batch, S tokens of a row."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatrain.data.loading.batch import Batch
from megatrain.data.loading.tensor_batch import TensorBatch
from megatrain.kernels.keyed_random import BITS, mixed

_SECOND = 0x5BD1E995  # what the keys of a second copy of the rows differ by


@dataclass(frozen=True, slots=True)
class Place:
    """Which micro-batch of a run; both count from 0."""

    step: int
    micro_batch: int


class Noise:
    """Of each position of a micro-batch a key, which is a function of run.seed, the step, the row's number in the
    step's global batch and the position in the row: the same on any layout, in a forward pass that is made again, and
    after a resume. Outside of a training step there are none, and nothing is disturbed.

    Args:
        seed: run.seed.
        data_rank, data_size: of the data-parallel ranks.
        sequence_parts: into how many parts ranks cut a batch's sequences before the model sees them.
        part: what of [B, S] of whole sequences this rank holds between layers.
        copies: how often the objective gives the model the rows of a batch at once, behind each other: 1 or 2.

    Attributes:
        keys_BS: int64, below 2^32, of what this rank holds between layers. B counts the copies.
        lengths_BS: int64, of the example that each position is of.
    """

    def __init__(
        self,
        seed: int,
        *,
        data_rank: int = 0,
        data_size: int = 1,
        sequence_parts: int = 1,
        part: Callable[[Tensor], Tensor] = lambda whole: whole,
        copies: int = 1,
    ) -> None:
        self._seed = mixed(mixed((seed + 1) & ((1 << BITS) - 1)) ^ (seed >> BITS))
        self._data_rank, self._data_size = data_rank, data_size
        self._sequence_parts, self._part, self._copies = sequence_parts, part, copies
        self.keys_BS: Tensor | None = None
        self.lengths_BS: Tensor | None = None

    def begin(self, batch: TensorBatch, at: Place | None) -> None:
        """Before the forward pass of a micro-batch, on its device and this rank's part of it; nothing waits for the
        device.

        Raises:
            ValueError: nobody says which micro-batch it is, or it is none of tokens.
        """
        if at is None or not isinstance(batch, Batch):
            raise ValueError("dropout and noise are a function of the step, and of rows of tokens: name the place")
        rows, length = batch.input_ids.shape
        length, device = length * self._sequence_parts, batch.input_ids.device
        first = (at.micro_batch * self._data_size + self._data_rank) * rows
        rows_B = mixed(torch.arange(first, first + rows, device=device) ^ mixed(self._seed ^ mixed(at.step + 1)))
        places_S = mixed(torch.arange(1, length + 1, device=device))
        keys_BS = self._part(mixed(rows_B[:, None] ^ places_S))
        lengths_BS = self._part(_lengths(batch.cu_seqlens, rows, length, device))
        if self._copies == 2:
            keys_BS, lengths_BS = torch.cat((keys_BS, mixed(keys_BS ^ _SECOND))), lengths_BS.repeat(2, 1)
        self.keys_BS, self.lengths_BS = keys_BS, lengths_BS

    def end(self) -> None:
        """Behind the backward pass."""
        self.keys_BS = self.lengths_BS = None


def _lengths(cu_seqlens: Tensor | None, rows: int, length: int, device: torch.device) -> Tensor:
    if cu_seqlens is None:
        return torch.full((rows, length), length, device=device)
    return cu_seqlens.diff()[documents_of(cu_seqlens, rows, length)].long()


def documents_of(cu_seqlens: Tensor, rows: int, length: int) -> Tensor:
    """Int64 [B, S]: of each position of whole sequences its document's number in the batch."""
    places = torch.arange(rows * length, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    return (torch.bucketize(places, cu_seqlens, right=True) - 1).view(rows, length)
