"""The stream of training batches: any rank's share of any step, from one number, the position.

The global batch of G samples that begins at sample p holds p … p + G - 1 of the run's order; which G, says the sample
that it begins at. With n data-parallel ranks and micro-batches of b samples, micro-batch a of rank r holds
p + a·b·n + r·b + (0 … b-1). So all ranks together read the same samples in
the same steps, whatever n and b are, and the state is the same on each of them.
"""

import time
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from megatrain.base.batch_sizes import BatchSizes
from megatrain.config import DataSection
from megatrain.data.loading.batch import Batch, assemble_rows
from megatrain.data.loading.evaluation import EvaluationLoader
from megatrain.data.loading.masking import Masking
from megatrain.data.loading.read_ahead import ReadAhead
from megatrain.data.loading.shares import RankShare
from megatrain.data.loading.stream import SampleStream
from megatrain.data.loading.tensor_batch import TensorBatch
from megatrain.data.ordering.position import changes_since

__all__ = ["EvaluationLoader", "StepBatches", "TrainLoader"]


B_co = TypeVar("B_co", bound=TensorBatch, covariant=True)


@dataclass(frozen=True, slots=True)
class StepBatches(Generic[B_co]):
    """A rank's part of one optimizer step."""

    micro_batches: tuple[B_co, ...]
    # what the loss is summed over, over the global batch of all ranks: labels, or the weights of their classes
    targets: float


class TrainLoader:
    """Reads one data-parallel rank's batches ahead, in threads, and counts those that were consumed.

    Under tensor parallelism every rank of a group has a loader of the same data rank and reads the same: that takes
    about as long as sending it around (benchmarks/results/data.md), happens ahead of time, and needs no collective.

    Args:
        data: the configuration's section.
        global_batch_size: samples per step, over all ranks; or of each step, where they differ.
        micro_batch_size: samples a rank holds at once.
        data_rank, data_size: this rank among the data-parallel ones.
        seed: run.seed.
        pin_memory: put batches into page-locked memory, for a GPU to copy them while the CPU goes on.
        masking: of masked language modelling; default: each label is the next token.

    Raises:
        DataError: a source is missing, damaged or unsuitable.
        ConfigError: the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        data: DataSection,
        *,
        global_batch_size: int | BatchSizes,
        micro_batch_size: int,
        data_rank: int,
        data_size: int,
        seed: int,
        pin_memory: bool = False,
        masking: Masking | None = None,
    ) -> None:
        self._masking = masking
        self._share = RankShare(
            global_batch_size, micro_batch_size=micro_batch_size, data_rank=data_rank, data_size=data_size
        )
        self._data = data
        self._pin_memory = pin_memory
        self._stream = SampleStream(data, seed)
        self._position = 0
        self._reader: ReadAhead[StepBatches[Batch]] | None = None
        self.wait_seconds = 0.0  # how long the last `next` waited for data

    @property
    def tokens_consumed(self) -> int:
        """Over all ranks, since the run's first step."""
        return self._position * self._data.sequence_length

    def next(self) -> StepBatches[Batch]:
        """This rank's micro-batches of the next optimizer step.

        Raises:
            DataError: a shard cannot be read. The position stays, so that the step can be tried again.
        """
        started = time.perf_counter()
        if self._reader is None:
            self._reader = ReadAhead(
                self.read_step,
                self._position,
                self._share.next_position,
                self._data.prefetch,
                threads=self._data.reading.threads,
            )
        try:
            batches = self._reader.next()
        except BaseException:
            self._stop_reading()
            raise
        self._position = self._share.next_position(self._position)
        self.wait_seconds = time.perf_counter() - started
        return batches

    def read_step(self, position: int) -> StepBatches[Batch]:
        """This rank's part of the global batch that begins at sample `position`; changes nothing.

        A step has one sequence length, that of the phase that its first sample is in: its samples are cut accordingly.
        """
        offsets = self._share.offsets(position)
        samples = position + offsets.reshape(-1)
        _, rows = self._stream.read(samples)
        length, across = self._stream.sequence_length(position), self._data.attend_across_documents
        micro_batches = []
        for number in range(len(offsets)):
            size = offsets.shape[1]
            first, last = number * size, (number + 1) * size
            options: dict[str, Any] = {"attend_across_documents": across, "sequence_length": length}
            if self._masking is None:
                batch = assemble_rows(rows.part(first, last), **options)
            else:
                batch = self._masking.batch(rows.part(first, last), samples[first:last], **options)
            micro_batches.append(batch.pin_memory() if self._pin_memory else batch)
        return StepBatches(tuple(micro_batches), self._targets(position))

    def _targets(self, position: int) -> int:
        size = self._share.size(position)
        if self._masking is not None:
            return size * self._masking.predictions(self._data.sequence_length)
        return self._stream.targets(position, size)

    def state_dict(self) -> dict[str, Any]:
        """All that decides the samples to come: small, JSON-able, the same on every rank."""
        return {"position": self._position, **self._stream.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Go on from a saved position, with any number of ranks and threads and any batch size.

        Returns what the run changes from here on, a line each: phases that had not begun, and the like.

        Raises:
            DataError: the saved position counts in another order than this loader's; says what differs.
        """
        notes = changes_since(state, self._stream.identity())
        self._stop_reading()
        self._position = state["position"]
        return notes

    def samples_per_source(self) -> list[int]:
        """Samples consumed of each source, over all ranks, since the run's first step."""
        return [int(count) for count in self._stream.order.counts(self._position)]

    def close(self) -> None:
        """Stop reading and close the shards."""
        self._stop_reading()
        self._stream.close()

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
