"""Masked language modelling: which positions are predicted, and what stands there instead (arXiv 1810.04805, section
3.1 and appendix A.1).

All is a function of (seed, number of the sample in the run's order, position in its row): the same on any number of
ranks, with any micro-batch, and after a resume. As in BERT's own code each row has one number of predictions,
rate · length, so that all ranks know the targets of a global batch without reading it.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from megatrain.data.loading.batch import IGNORE_INDEX, Batch, Rows, assemble_rows

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
_CHOICE, _KIND, _TOKEN = range(3)  # what a random number decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """
    Attributes:
        seed: another one for training and for validation.
        rate: predictions per token of a row.
        mask_share, random_share: parts of the predictions that are shown as `mask_id`, and as another token drawn
            evenly; the rest is shown as it is.
        mask_id: of the token that hides others.
        is_special: bool [vocabulary]: tokens that are neither predicted nor drawn.
        continues: bool [vocabulary]: tokens that continue a word; predictions are whole words. None: single tokens.
    """

    seed: int
    rate: float
    mask_share: float
    random_share: float
    mask_id: int
    is_special: NDArray[np.bool_]
    continues: NDArray[np.bool_] | None = None

    def predictions(self, length: int) -> int:
        """Of a row of so many tokens; a row that has fewer tokens to predict, for padding, has fewer."""
        return max(1, round(self.rate * length))

    def batch(
        self, rows: Rows, samples: Int64, *, attend_across_documents: bool, sequence_length: int | None = None
    ) -> Batch:
        """A batch of rows as `assemble_rows`, whose labels are what is hidden, at its own position.

        Args:
            samples: of each row, its number in the run's order.
        """
        plain = assemble_rows(rows, attend_across_documents=attend_across_documents, sequence_length=sequence_length)
        inputs, labels = (np.empty((len(samples), rows.tokens.shape[1] - 1), np.int64) for _ in range(2))
        for number, sample in enumerate(samples):
            inputs[number], labels[number] = self._masked(rows, number, int(sample))
        shape = plain.input_ids.shape
        return replace(
            plain,
            input_ids=torch.from_numpy(inputs.reshape(shape)),
            labels=torch.from_numpy(labels.reshape(shape)),
        )

    def _masked(self, rows: Rows, number: int, sample: int) -> tuple[Int64, Int64]:
        tokens = rows.tokens[number, :-1].astype(np.int64)
        candidate = ~self.is_special[tokens]
        targets, ends = rows.targets[number], rows.ends[number]
        if targets is not None and targets < len(tokens) - len(ends):
            candidate[ends[-1] :] = False  # padding
        key = _mix(_mix(np.uint64(self.seed)) + np.uint64(sample))
        chosen = self._chosen(tokens, candidate, rows.ends[number], _random(key, _CHOICE, len(tokens)))
        labels = np.full(len(tokens), IGNORE_INDEX, np.int64)
        labels[chosen] = tokens[chosen]
        kind = _random(key, _KIND, len(tokens))[chosen].astype(np.float64) / 2.0**64
        ordinary = np.flatnonzero(~self.is_special)
        drawn = ordinary[(_random(key, _TOKEN, len(tokens))[chosen] % np.uint64(len(ordinary))).astype(np.int64)]
        shown = np.where(kind < self.mask_share, self.mask_id, tokens[chosen])
        is_random = (kind >= self.mask_share) & (kind < self.mask_share + self.random_share)
        tokens[chosen] = np.where(is_random, drawn, shown)
        return tokens, labels

    def _chosen(self, tokens: Int64, candidate: NDArray[np.bool_], ends: Int64, random: UInt64) -> Int64:
        """Positions, `predictions` of them if there are as many: of words in random order, those that still fit."""
        wanted = self.predictions(len(tokens))
        starts = candidate.copy()
        if self.continues is not None:
            follows = np.zeros(len(tokens), np.bool_)
            follows[1:] = candidate[:-1] & candidate[1:] & self.continues[tokens[1:]]
            follows[ends[ends < len(tokens)]] = False  # a document begins
            starts &= ~follows
        first = np.flatnonzero(starts)
        order = np.argsort(random[first], kind="stable")
        if self.continues is None:
            return np.sort(first[order[:wanted]])
        word = np.cumsum(starts) - 1
        lengths = np.bincount(word[candidate], minlength=len(first))
        taken = np.zeros(len(first), np.bool_)
        for one in order:
            if lengths[one] <= wanted:
                taken[one] = True
                wanted -= lengths[one]
                if not wanted:
                    break
        return np.flatnonzero(candidate & taken[np.maximum(word, 0)])


def _random(key: UInt64, purpose: int, count: int) -> UInt64:
    """A number for each position, of 64 random bits."""
    with np.errstate(over="ignore"):
        return _mix(key + np.arange(count, dtype=np.uint64) * np.uint64(3) + np.uint64(purpose))


def _mix(number: np.uint64 | UInt64) -> UInt64:
    """splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a hash whose values for 0, 1, 2, … pass for random."""
    with np.errstate(over="ignore"):
        x = np.asarray(number, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
