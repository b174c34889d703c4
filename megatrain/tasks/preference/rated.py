"""One rank's batches of answers that are desirable or not (KTO), and their loss.

The divergence that the loss compares a reward with is estimated on the whole global batch, on all ranks, before the
first part of it: no layout, nor a micro-batch's size, changes it. An evaluation estimates it on the whole set.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from megatrain.base.errors import DataError
from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.examples.packing import PackedRow
from megatrain.data.examples.rated_answers import RatedSet
from megatrain.data.loading.batch import Batch
from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks import loss_metrics  # noqa: F401 - registers validation_loss
from megatrain.tasks.base import DataShare, Loader, LossSums, Model, Start
from megatrain.tasks.preference import task as pairs  # noqa: F401 - registers reward_margin
from megatrain.tasks.preference.kto import divergence
from megatrain.tasks.preference.kto import loss as kto_loss
from megatrain.tasks.preference.rated_batch import MISMATCHED, RatedBatch, RatedEvaluation, RatedLoader
from megatrain.tasks.preference.referenced import ReferencedTask, answer_log_probabilities

for _name, _unit, _console in (
    ("reward_desirable", "mean reward of desirable answers; 0 in a step that has none", "desirable {value}"),
    ("reward_undesirable", "mean reward of undesirable answers; 0 in a step that has none", "undesirable {value}"),
    ("kl", "nats that the model has gone from the reference, on answers to other prompts; not below 0", "KL {value}"),
):
    METRICS.register(
        _name,
        Metric(
            unit=_unit,
            tag=f"train/{_name}",
            format="{:.3f}".format,
            console=_console,
            over_steps="mean",
            over_ranks="sum",
        ),
    )
    METRICS.register(
        f"validation_{_name}",
        Metric(unit=f"{_unit}, of an evaluation", tag=f"validation/{_name}", format="{:.3f}".format, console=_console),
    )
METRICS.register(
    "validation_answers",
    Metric(unit="answers of an evaluation", tag=None, format="{:,.0f}".format, console="({value} answers)"),
)


class Rated(ReferencedTask):
    """The two numbers of an answer in the reference: of the answer, and of one to another prompt in its place."""

    def __init__(self, config: ResolvedFinetune) -> None:
        super().__init__(config)
        sets = [self._training, *self._sets.values()]
        self._beside = [cast(RatedSet, found).beside[: len(rows)] for found, rows in zip(sets, self._rows, strict=True)]
        if not all(self._beside):
            raise DataError(
                "finetune.train, finetune.validation: need answers to at least two prompts, for the KL term"
            )
        self._loader: RatedLoader | None = None
        self._start: Start | None = None
        self._kl = torch.zeros(())

    @staticmethod
    def items_of(row: PackedRow) -> int:
        return len(row.ends)

    def loader(self, share: DataShare) -> Loader[Batch]:
        self._loader = RatedLoader(
            self._training.rows,
            self._beside[0],
            self._references[0],
            global_batch_size=self._config.training.global_batch_size,
            micro_batch_size=self._config.training.micro_batch_size,
            data_rank=share.rank,
            data_size=share.size,
            seed=self._config.run.seed,
        )
        return self._loader

    def validation(self, share: DataShare) -> Mapping[str, Iterable[Batch]]:
        return {name: self._batches(number, share) for number, name in enumerate(self.held_out, 1)}

    def begin(self, start: Start) -> None:
        super().begin(start)
        self._start = start

    def before_step(self) -> None:
        assert self._loader is not None, "made before"
        assert self._start is not None, "begun before"
        sums = [self._start.compute(_ratio_sum, batch) for batch in self._loader.mismatched]
        self._kl = divergence(*self._start.sum_over_data(torch.stack(sums).sum(0)).unbind())

    def loss(self, model: Model, batch: Batch) -> LossSums:
        """Of each answer, summed."""
        assert isinstance(batch, RatedBatch)
        assert batch.ratings is not None
        assert batch.shares is not None
        policy_N, reference_N = _log_probabilities(model, batch)
        losses_N, rewards_N = kto_loss(policy_N, reference_N, batch.ratings, self._kl, self._section)
        rewards_N = rewards_N.detach()
        desirable = (rewards_N * batch.ratings).sum() * batch.shares[0]
        undesirable = (rewards_N * (1 - batch.ratings)).sum() * batch.shares[1]
        extras = {
            "reward_desirable": desirable,
            "reward_undesirable": undesirable,
            "reward_margin": desirable - undesirable,
            "kl": (self._kl * len(rewards_N)).float(),
        }
        return LossSums(losses_N.sum(), extras)

    def evaluation_sums(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Of each answer how much likelier than in the reference it is, and its rating."""
        assert isinstance(batch, RatedBatch)
        assert batch.ratings is not None
        policy_N, reference_N = _log_probabilities(model, batch)
        records = torch.stack([policy_N - reference_N, batch.ratings], dim=1)
        return {"answers": (batch.ratings != MISMATCHED).sum(), "records": records}

    def evaluation_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        ratios, ratings = sums["records"].unbind(1)
        apart = ratings == MISMATCHED
        kl = divergence(ratios[apart].sum(), int(apart.sum()))
        ratios, ratings = ratios[~apart], ratings[~apart]
        losses, rewards = kto_loss(ratios, torch.zeros_like(ratios), ratings, kl, self._section)
        found = {"validation_loss": float(losses.mean())}
        kinds = (("desirable", rewards[ratings > 0]), ("undesirable", rewards[ratings == 0]))
        means = {f"validation_reward_{name}": float(of_kind.mean()) for name, of_kind in kinds if len(of_kind)}
        if len(means) == len(kinds):
            found["validation_reward_margin"] = float(kinds[0][1].mean() - kinds[1][1].mean())
        return found | means | {"validation_kl": float(kl), "validation_answers": sums["answers"]}

    def _expected(self) -> str | None:
        assert self._loader is not None, "made before"
        return self._loader.expected

    def references_of(self, number: int, start: Start) -> Tensor:
        begins = np.cumsum([0, *(len(row.ends) for row in self._rows[number])])
        found = torch.zeros(int(begins[-1]), 2)
        for column in range(2):
            for mine, batch in self._batches(number, start.share).of(column):
                values = start.compute(lambda model, one: _log_probabilities(model, one)[0], batch)
                if mine:
                    found[begins[mine.start] : begins[mine.stop], column] = values.cpu()
        return found

    def _batches(self, number: int, share: DataShare) -> RatedEvaluation:
        return RatedEvaluation(
            self._rows[number],
            self._beside[number],
            self._references[number],
            micro_batch_size=self._config.training.micro_batch_size,
            data_rank=share.rank,
            data_size=share.size,
        )


def _log_probabilities(model: Model, batch: RatedBatch) -> tuple[Tensor, Tensor]:
    """Of the answers, and in the reference: fp32 [N] both."""
    assert batch.answers is not None
    assert batch.reference is not None
    return answer_log_probabilities(model, batch, batch.answers, len(batch.reference))[0], batch.reference


def _ratio_sum(model: Model, batch: RatedBatch) -> Tensor:
    """Of log(π/π_ref), and of how many answers: fp64 [2]."""
    policy_N, reference_N = _log_probabilities(model, batch)
    total = (policy_N - reference_N).double().sum()
    return torch.stack([total, torch.tensor(float(len(policy_N)), dtype=total.dtype, device=total.device)])
