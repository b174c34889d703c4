"""Samples of a pretraining as its model sees them: `megatrain data preview`."""

import random
from collections.abc import Iterator

import numpy as np

from megatrain.config import PretrainConfig
from megatrain.data.checks.inspection import tokenizer_of
from megatrain.data.loading.batch import IGNORE_INDEX
from megatrain.data.loading.masking import Masking
from megatrain.data.loading.stream import SampleStream
from megatrain.data.text.pieces import Piece, Shown, pieces_of

_MOST = 1 << 20  # of the positions that a seed draws from


def preview_samples(config: PretrainConfig, count: int, seed: int | None, masking: Masking | None) -> Iterator[Shown]:
    """The run's first samples, or as many from anywhere in its first million.

    Args:
        masking: of masked language modelling: what is learnt are the hidden tokens, shown with their mask.

    Raises:
        DataError: a source is missing, damaged or unsuitable.
    """
    first = range(count) if seed is None else sorted(random.Random(seed).sample(range(_MOST), count))
    positions = np.array(first, dtype=np.int64)
    stream = SampleStream(config.data, config.run.seed)
    try:
        tokenizer = tokenizer_of(stream.sources.data[0])
        samples, rows = stream.read(positions)
        for number, position in enumerate(positions.tolist()):
            source, block = int(samples.source[number]), int(samples.block[number])
            where = f"sample {position:,} · {config.data.train[source].path} · block {block} row {samples.row[number]}"
            row = rows.part(number, number + 1)
            ids = row.tokens[0, :-1].astype(np.int64)
            labels: list[str | None] = [None] * len(ids)
            learnt = np.ones(len(ids), dtype=np.bool_)
            learnt[0] = False
            if masking is not None:
                batch = masking.batch(row, positions[number : number + 1], attend_across_documents=True)
                ids, hidden = batch.input_ids.numpy().reshape(-1), batch.labels.numpy().reshape(-1)
                learnt = hidden != IGNORE_INDEX
                labels = [tokenizer.decode([one]) if one != IGNORE_INDEX else None for one in hidden.tolist()]
            elif row.targets[0] is not None:
                learnt[int(row.ends[0][-1]) :] = False  # padding
            added = np.zeros(len(ids), dtype=np.bool_)
            pieces: tuple[Piece, ...] = tuple(pieces_of(tokenizer, ids, learnt, added, labels))
            yield Shown(where, pieces, tuple(ids.tolist()), int(learnt.sum()), None)
    finally:
        stream.close()
