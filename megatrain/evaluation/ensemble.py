"""Several classifiers as one: the mean of their probabilities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megatrain.base.errors import ConfigError
from megatrain.config.resolved import ResolvedRun
from megatrain.run.directory import RunDir, locate
from megatrain.run.inputs import kept_tokenizer_sha256, load_run

TASKS = ("sequence_classification", "token_classification", "relation_extraction")


class Ensemble(nn.Module):
    """Answers like one classifier, with logits of the mean of its members' probabilities; of a regression, the mean.

    Args:
        problem: of the task: "single_label", "multi_label" or "regression".
    """

    def __init__(self, members: Sequence[nn.Module], problem: str) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._problem = problem

    def forward(self, input_ids_BS: Tensor, labels_BS: Tensor | None = None, **options: Any) -> Tensor:
        """fp32 logits [B, S, labels]; it has no loss."""
        assert labels_BS is None, "an ensemble is not trained"
        logits = torch.stack([member(input_ids_BS, None, **options).float() for member in self.members])
        if self._problem == "regression":
            return logits.mean(0)
        if self._problem == "multi_label":
            return logits.double().sigmoid().mean(0).logit(eps=1e-15).float()
        return torch.logsumexp(logits.log_softmax(-1), 0) - torch.log(torch.tensor(float(len(self.members))))


def check_alike(run: RunDir, config: ResolvedRun, others: Sequence[Path]) -> None:
    """
    Args:
        others: runs or checkpoints.

    Raises:
        ConfigError: they are not classifiers of the same labels, that read the same tokens.
    """
    if others and config.task.name not in TASKS:
        raise ConfigError(
            f"--with: {run}: task.name: {config.task.name}: an ensemble averages the probabilities of classifiers: "
            f"{', '.join(TASKS)}. Of language models of one base, average weights: megatrain export --average"
        )
    for path in others:
        other = locate(path)[0]
        theirs = load_run(other)
        for name in ("name", "classes", "problem", "markers"):
            mine, its = (getattr(one.task, name, None) for one in (config, theirs))
            if mine != its:
                raise ConfigError(f"--with {path}: task.{name}: is {its!r}, and {run} has {mine!r}: they must be alike")
        if kept_tokenizer_sha256(other) != kept_tokenizer_sha256(run):
            raise ConfigError(f"--with {path}: has another tokenizer than {run}: one cannot read the other's tokens")
        longest = theirs.model.longest_sequence
        if longest is not None and longest < config.sequence_length:
            raise ConfigError(
                f"--with {path}: has {longest:,} learned positions, and {run} reads sequences of "
                f"{config.sequence_length:,}: name the other run first"
            )
