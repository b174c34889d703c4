"""Which token follows, given the logits of all. The steps and their order are those of `generate` of transformers:

    repetition penalty -> temperature -> top-k -> top-p -> min-p -> a draw

V vocabulary, k what top-k leaves of it.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from megatrain.base.errors import ConfigError, NonFiniteError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is drawn.

    Attributes:
        temperature: that logits are divided by; 0 takes the likeliest token, whatever top_k, top_p and min_p say.
        top_k: only so many of the likeliest; None: all.
        top_p: of those, only the likeliest that have this probability together (arXiv 1904.09751).
        min_p: of those, only what is at least this times as likely as the likeliest (arXiv 2407.01082).
        repetition_penalty: that the logit of a token which was there before is divided by where it is positive, and
            multiplied with where it is negative (arXiv 1909.05858, section 4.1).

    Raises:
        ConfigError: a value is out of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        rules = (
            ("temperature", self.temperature >= 0, "must be 0 or more; 0 takes the likeliest token"),
            ("top-k", self.top_k is None or self.top_k >= 1, "must be at least 1"),
            ("top-p", 0 < self.top_p <= 1, "must be above 0 and at most 1, which keeps all tokens"),
            ("min-p", 0 <= self.min_p <= 1, "must be from 0, which keeps all tokens, to 1"),
            ("repetition-penalty", self.repetition_penalty > 0, "must be above 0; 1 is none, 1.2 is usual"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ConfigError(f"--{name}: {getattr(self, name.replace('-', '_'))}: {rule}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def draw(logits_V: Tensor, before: Collection[int], sampling: Sampling, generator: torch.Generator) -> int:
    """The next token.

    Args:
        logits_V: fp32 on the CPU, of the tokens that can be drawn.
        before: the tokens so far, which the repetition penalty is of.
        generator: of the CPU; not asked where the likeliest is taken.

    Raises:
        NonFiniteError: a logit is a NaN or an infinity.
    """
    if not logits_V.isfinite().all():
        raise NonFiniteError("the model's logits are not finite: its weights hold a NaN or an infinity")
    logits_V = penalized(logits_V, before, sampling.repetition_penalty)
    if sampling.is_greedy:
        return int(logits_V.argmax())
    logits_k, ids_k = likeliest(logits_V, sampling)
    return int(ids_k[torch.multinomial(logits_k.softmax(-1), 1, generator=generator)])


def penalized(logits_V: Tensor, before: Collection[int], penalty: float) -> Tensor:
    ids = sorted({token for token in before if token < len(logits_V)})
    if penalty == 1 or not ids:
        return logits_V
    of_them = logits_V[ids]
    changed = logits_V.clone()
    changed[ids] = torch.where(of_them < 0, of_them * penalty, of_them / penalty)
    return changed


def likeliest(logits_V: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Logits over temperature and ids of what may be drawn, the likeliest first."""
    top = len(logits_V) if sampling.top_k is None else min(sampling.top_k, len(logits_V))
    logits_k, ids_k = torch.topk(logits_V, top)
    logits_k = (logits_k - logits_k[0]) / sampling.temperature  # a tiny temperature overflows to -inf only
    if sampling.top_p < 1:
        probabilities_k = logits_k.softmax(-1)
        kept = int((probabilities_k.cumsum(-1) - probabilities_k < sampling.top_p).sum())
        logits_k, ids_k = logits_k[:kept], ids_k[:kept]
    if sampling.min_p > 0:
        kept = int((logits_k.exp() >= sampling.min_p).sum())
        logits_k, ids_k = logits_k[:kept], ids_k[:kept]
    return logits_k, ids_k
