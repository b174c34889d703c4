"""What a model that knows only how frequent each token is would score: the mark that a trained one has to beat."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatrain.data.loading.shards import PreparedData


def unigram_loss(train: Iterable[tuple[Path, float]], held_out: Path) -> float:
    """Cross-entropy of the held-out tokens under the frequencies of the training tokens, in nats per token.

    Args:
        train: prepared folders and their weights in the mixture.
    """
    counted = [(token_counts(folder), weight) for folder, weight in train]
    return cross_entropy(token_counts(held_out), [counts for counts, _ in counted], [weight for _, weight in counted])


def cross_entropy(held_out: NDArray[np.int64], train: Sequence[NDArray[np.int64]], weights: Sequence[float]) -> float:
    """-Σ q ln p in nats: q the held-out frequencies, p the weighted mean of the training frequencies.

    All arrays are counts [vocabulary]. One is added to each training count, or a token that training lacks would cost
    infinitely much (Laplace).
    """
    share = np.asarray(weights, dtype=np.float64) / sum(weights)
    frequencies = np.stack([(counts + 1) / (counts + 1).sum() for counts in train])
    mixed = share @ frequencies
    return float(-(held_out / held_out.sum()) @ np.log(mixed))


def token_counts(folder: Path) -> NDArray[np.int64]:
    """How often each token occurs in a prepared folder, int64 [vocabulary]."""
    data = PreparedData(folder)
    counts = np.zeros(data.manifest.vocab_size, dtype=np.int64)
    for block in range(data.manifest.blocks):
        tokens = data.block_tokens(block)[:-1]  # the last is the next block's first
        counts += np.bincount(tokens, minlength=len(counts))
    data.close()
    return counts
