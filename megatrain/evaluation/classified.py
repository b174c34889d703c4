"""What a classifier says of each example of a batch. S positions, C classes, n labels of an example."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import nn

from megatrain.data.loading.batch import IGNORE_INDEX, Batch
from megatrain.evaluation.ranks import Ranks
from megatrain.tasks.classification import forward


@dataclass(frozen=True, slots=True)
class Classified:
    """One example: its tokens; at its positions that have a label, the probabilities [n, C] and the label [n]."""

    ids: list[int]
    probabilities: NDArray[np.float64]
    there: list[int]

    @property
    def said(self) -> list[int]:
        return [int(number) for number in self.probabilities.argmax(-1)]


def classified(model: nn.Module, batch: Batch, ranks: Ranks) -> Iterator[Classified]:
    """The examples of a batch, in their order. What has no label is padding. Collective, where ranks share it out.

    Args:
        batch: whole.
    """
    assert batch.cu_seqlens is not None, "examples do not see each other"
    logits_BSC = forward(model, ranks.mine(batch), None)
    if logits_BSC.shape[1] != batch.labels.shape[1]:
        logits_BSC = ranks.whole_sequences(logits_BSC)
    probabilities = logits_BSC.float().softmax(-1).flatten(0, 1).double().cpu().numpy()
    labels, ids = (tensor.flatten().cpu().numpy() for tensor in (batch.labels, batch.input_ids))
    for begin, end in pairwise(batch.cu_seqlens.tolist()):
        places = begin + np.flatnonzero(labels[begin:end] != IGNORE_INDEX)
        if len(places):
            yield Classified(ids[begin:end].tolist(), probabilities[places], labels[places].tolist())
