"""The stream of training batches: any rank's share of any step, from one number, the position.

Global batch k holds the samples k·G … k·G + G - 1 of the run's order. With n data-parallel ranks and micro-batches of
b sequences, micro-batch a of rank r holds k·G + a·b·n + r·b + (0 … b-1). So all ranks together read the same samples in
the same steps, whatever n and b are, and the state is the same on each of them.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatrain.config import DataSection
from megatrain.data.batch import Batch, assemble
from megatrain.data.evaluation import EvaluationLoader
from megatrain.data.mixture import quotas
from megatrain.data.order import ORDER_VERSION, Order, Stage
from megatrain.data.read_ahead import ReadAhead
from megatrain.data.sources import OpenSources
from megatrain.errors import ConfigError, DataError

__all__ = ["EvaluationLoader", "StepBatches", "TrainLoader"]


@dataclass(frozen=True, slots=True)
class StepBatches:
    """A rank's part of one optimizer step."""

    micro_batches: tuple[Batch, ...]
    target_tokens: int  # labels with a target, over the global batch of all ranks


class TrainLoader:
    """Reads one data-parallel rank's batches ahead, in a thread, and counts those that were consumed.

    Args:
        data: the configuration's section.
        global_batch_size: sequences a step, over all ranks.
        micro_batch_size: sequences a rank holds at once.
        data_rank, data_size: this rank among the data-parallel ones.
        seed: run.seed.

    Raises:
        DataError: a source is missing, damaged or unsuitable.
        ConfigError: the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        data: DataSection,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        data_rank: int,
        data_size: int,
        seed: int,
    ) -> None:
        if global_batch_size % (micro_batch_size * data_size):
            raise ConfigError(
                f"training.global_batch_size: {global_batch_size}: must be a multiple of micro_batch_size x "
                f"data-parallel ranks = {micro_batch_size} x {data_size}"
            )
        self._data = data
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._sources = OpenSources(data.train, data.sequence_length, with_ends=not data.attend_across_documents)
        self._quotas = quotas([source.weight for source in data.train])
        self._order = Order(self._sources.sizes, [Stage(0, self._quotas)], seed)
        # offsets of this rank's samples within a global batch, [micro-batches, micro_batch_size]
        in_step = np.arange(global_batch_size, dtype=np.int64).reshape(-1, data_size, micro_batch_size)
        self._offsets = in_step[:, data_rank, :]
        self._position = 0
        self._reader: ReadAhead[StepBatches] | None = None
        self.wait_seconds = 0.0  # how long the last `next` waited for data

    @property
    def tokens_consumed(self) -> int:
        """Over all ranks, since the run's first step."""
        return self._position * self._data.sequence_length

    def next(self) -> StepBatches:
        """This rank's micro-batches of the next optimizer step.

        Raises:
            DataError: a shard cannot be read. The position stays, so that the step can be tried again.
        """
        started = time.perf_counter()
        if self._reader is None:
            self._reader = ReadAhead(self.read_step, self._position, self._global_batch_size, self._data.prefetch)
        try:
            batches = self._reader.next()
        except BaseException:
            self._stop_reading()
            raise
        self._position += self._global_batch_size
        self.wait_seconds = time.perf_counter() - started
        return batches

    def read_step(self, position: int) -> StepBatches:
        """This rank's part of the global batch that begins at sample `position`; changes nothing."""
        samples = self._order.locate(position + self._offsets.reshape(-1))
        places = zip(samples.source.tolist(), samples.block.tolist(), samples.row.tolist(), strict=True)
        rows = [self._sources.read(source, block, row) for source, block, row in places]
        size, across = self._offsets.shape[1], self._data.attend_across_documents
        groups = [rows[first : first + size] for first in range(0, len(rows), size)]
        micro_batches = tuple(assemble(group, attend_across_documents=across) for group in groups)
        whole_step = self._order.locate(position + np.arange(self._global_batch_size, dtype=np.int64))
        return StepBatches(micro_batches, self._sources.targets(whole_step))

    def state_dict(self) -> dict[str, Any]:
        """All that decides the samples to come: small, JSON-able, the same on every rank."""
        return {"position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position, with any number of ranks and any batch size.

        Raises:
            DataError: the saved position counts in another order than this loader's; says what differs.
        """
        mine = self._identity()
        differing = [name for name in mine if state.get(name) != mine[name]]
        if differing or not isinstance(state.get("position"), int):
            changes = "; ".join(f"{name} was {state.get(name)}, is {mine[name]}" for name in differing)
            raise DataError(
                f"the data of this run is not what its checkpoint was trained on: {changes or 'no position saved'}. "
                "The position would mean other samples. Restore the data and settings, or start a new run."
            )
        self._stop_reading()
        self._position = state["position"]

    def samples_per_source(self) -> list[int]:
        """Samples consumed of each source, over all ranks, since the run's first step."""
        return [int(count) for count in self._order.counts(self._position)]

    def close(self) -> None:
        """Stop reading and close the shards."""
        self._stop_reading()
        self._sources.close()

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same sample. 64 bits of each hash keep it small."""
        return {
            "order_version": ORDER_VERSION,
            "seed": self._seed,
            "sequence_length": self._data.sequence_length,
            "sources": [data.manifest.manifest_hash[:16] for data in self._sources.data],
            "quotas": list(self._quotas),
        }
