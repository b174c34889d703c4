"""A run's samples as plain values, for people and for checks: `megatrain data stream`."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatrain.config import PretrainConfig
from megatrain.data.checks.inspection import tokenizer_of
from megatrain.data.loading.shares import rank_offsets
from megatrain.data.loading.stream import SampleStream

HASH_BYTES = 8
_AT_ONCE = 256  # samples read in one go


def token_hash(tokens: NDArray[np.integer]) -> str:
    """BLAKE2b of token ids as little-endian 32-bit words, 16 hexadecimal digits: the same whatever width they have."""
    return hashlib.blake2b(tokens.astype("<u4").tobytes(), digest_size=HASH_BYTES).hexdigest()


def audit(
    config: PretrainConfig,
    start: int,
    stop: int,
    *,
    ranks: int | None = None,
    rank: int | None = None,
    first_of_step: int = 0,
    with_text: bool = False,
) -> Iterator[dict[str, Any]]:
    """The samples at positions start … stop - 1, as a run of the configuration sees them.

    Args:
        ranks: data-parallel ranks; each sample then says which of them reads it.
        rank: only the samples of this one, in the order in which it reads them.
        first_of_step: a position at which an optimizer step begins; others do from there on.

    Raises:
        DataError: a source is missing, damaged or unsuitable.
        ConfigError: the ranks cannot share a batch.
    """
    readers = None if ranks is None else _Readers(config, ranks, first_of_step)
    stream = SampleStream(config.data, config.run.seed)
    try:
        tokenizer = tokenizer_of(stream.sources.data[0]) if with_text else None
        for first in range(start, stop, _AT_ONCE):
            positions = np.arange(first, min(first + _AT_ONCE, stop), dtype=np.int64)
            if readers is not None and rank is not None:
                positions = positions[[readers.of(position) == rank for position in positions.tolist()]]
            for sample in _read(stream, config, positions):
                if readers is not None:
                    sample["rank"] = readers.of(sample["position"])
                if tokenizer is not None:
                    sample["text"] = tokenizer.decode(sample["tokens"], skip_special_tokens=False)
                yield sample
    finally:
        stream.close()


def _read(stream: SampleStream, config: PretrainConfig, positions: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    if not positions.size:
        return
    samples, rows = stream.read(positions)
    for number, (position, place) in enumerate(zip(positions.tolist(), zip(*samples, strict=True), strict=True)):
        phase, source, epoch, block, row, replaced = map(int, place)
        found = {
            "position": position,
            "phase": phase,
            "source": config.data.train[source].path,
            "epoch": epoch,
            "shard": stream.sources.data[source].where(block),
            "block": block,
            "row": row,
            "tokens": rows.tokens[number].tolist(),
            "hash": token_hash(rows.tokens[number]),
        }
        yield found if replaced < 0 else found | {"replaced": replaced}


class _Readers:
    """Which rank reads a sample, where a step begins at `first`."""

    def __init__(self, config: PretrainConfig, ranks: int, first: int) -> None:
        self._sizes, self._first = config.training.batch_sizes, first
        micro = config.training.micro_batch_size
        self._of_size = {size: _rank_of_offset(size, micro, ranks) for size in self._sizes.every}

    def of(self, position: int) -> int:
        begin, size = self._sizes.step_of(position, self._first)
        return int(self._of_size[size][position - begin])


def _rank_of_offset(batch: int, chosen: int | str, ranks: int) -> NDArray[np.int64]:
    """Which rank reads each sample of a global batch, int64 [batch]."""
    # while it is still the planner's to choose: as if a rank's share were one micro-batch
    micro = chosen if isinstance(chosen, int) else max(1, batch // ranks)
    reader = np.empty(batch, dtype=np.int64)
    for rank in range(ranks):
        offsets = rank_offsets(global_batch_size=batch, micro_batch_size=micro, data_rank=rank, data_size=ranks)
        reader[offsets.reshape(-1)] = rank
    return reader
