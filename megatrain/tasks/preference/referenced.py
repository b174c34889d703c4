"""What is trained by log-probabilities of whole answers, compared with those of the model that training starts from."""

from abc import abstractmethod
from typing import cast

import numpy as np
import torch
from torch import Tensor

from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.examples.packing import PackedRow
from megatrain.data.loading.batch import Batch
from megatrain.kernels.cross_entropy import LossTerms
from megatrain.tasks.base import Model, Start
from megatrain.tasks.on_examples import ExampleTask
from megatrain.tasks.preference.batch import Reference
from megatrain.tasks.preference.reference import read_reference, write_reference
from megatrain.tasks.preference.section import PreferenceSection

_BY_TOKEN = LossTerms(by_token=True)


class ReferencedTask(ExampleTask):
    """Its reference is computed once, before the first step, and kept in the run's folder: two numbers of each item."""

    def __init__(self, config: ResolvedFinetune) -> None:
        super().__init__(config)
        self._section = cast(PreferenceSection, config.task)
        self._rows = [self._training.rows, *self.held_out.values()]
        self._references: list[Reference] = [
            [np.zeros((self.items_of(row), 2), dtype=np.float32) for row in rows] for rows in self._rows
        ]

    @staticmethod
    @abstractmethod
    def items_of(row: PackedRow) -> int:
        """How many items a row holds."""

    @abstractmethod
    def references_of(self, number: int, start: Start) -> Tensor:
        """fp32 [items, 2] of all rows of set `number` on this rank: zero where they are another rank's. Collective."""

    @abstractmethod
    def _expected(self) -> str | None:
        """The reference of the checkpoint that was loaded."""

    def begin(self, start: Start) -> None:
        if not self._section.needs_reference:
            return
        if start.resumed:
            read_reference(start.folder, self._references, expected=self._expected())
            return
        for number, reference in enumerate(self._references):
            whole = start.sum_over_data(self.references_of(number, start)).cpu().numpy()
            begins = np.cumsum([0, *map(len, reference)])
            for row, begin, end in zip(reference, begins[:-1], begins[1:], strict=True):
                row[:] = whole[begin:end]
        if start.is_main:
            write_reference(start.folder, self._references)


def answer_log_probabilities(model: Model, batch: Batch, answers_BS: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of each answer of a batch, fp32 [count]; and how many tokens it has, fp32 [count].

    Args:
        answers_BS: int64: the number of the answer whose token a position predicts; -1: of none.
    """
    places = {"position_ids_BS": batch.position_ids, "cu_seqlens": batch.cu_seqlens}
    losses_BS = model(batch.input_ids, batch.labels, **places, terms=_BY_TOKEN)
    numbers = torch.arange(count, device=losses_BS.device)
    is_of = answers_BS.flatten() == numbers[:, None]  # [count, B · S]: sums in one order, so that a resume is exact
    return -(losses_BS.flatten() * is_of).sum(-1), is_of.sum(-1).float()
