"""The loop that appends a token at a time to several prompts, with a key-value cache or without one.

B sequences, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from megatrain.generation.cache import key_value_cache
from megatrain.generation.ranks import Alone, Ranks
from megatrain.generation.sampling import Sampling, draw

Model = Callable[..., Any]
# tokens that each sequence has got since the last call -> logits [B, V] of what follows, of this rank's vocabulary
NextLogits = Callable[[Sequence[Sequence[int]]], Tensor]
Ends = Callable[[Sequence[int]], bool]


@contextmanager
def with_cache(
    module: nn.Module, *, places: int, call: Model | None = None, ranks: Ranks | None = None
) -> Iterator[NextLogits]:
    """Each call reads the new tokens only.

    Args:
        places: the most tokens of a sequence.
        call: what to call for a forward pass, such as an engine; default: the module.
    """
    device = next(module.parameters()).device
    with key_value_cache(module, places, (ranks or Alone()).positions_multiple) as cache:

        def next_logits(new: Sequence[Sequence[int]]) -> Tensor:
            ids_BS, positions_BS = cache.feed(new, device)
            logits: Tensor = (call or module)(ids_BS, position_ids_BS=positions_BS)[:, -1]
            return logits

        yield next_logits


def without_cache(model: Model) -> NextLogits:
    """The plain twin of `with_cache`: each call reads everything again, each sequence by itself."""
    texts: list[list[int]] = []

    def next_logits(new: Sequence[Sequence[int]]) -> Tensor:
        texts[:] = [[*old, *tokens] for old, tokens in zip(texts or [[]] * len(new), new, strict=True)]
        rows: list[Tensor] = [model(torch.tensor([text]))[0, -1] for text in texts]
        return torch.stack(rows)

    return next_logits


@torch.no_grad()
def continued(
    next_logits: NextLogits,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    ends: Ends,
    vocab_size: int,
    seeds: Sequence[int] | None = None,
    longest: int | None = None,
    ranks: Ranks | None = None,
) -> list[list[int]]:
    """What follows each prompt, without it; with the tokens that ended it.

    A sequence is the same with others beside it and without, up to the rounding of logits. Every rank of a layout calls
    this at the same time with as many new tokens at most; tensor-parallel ones with the same prompts.

    Args:
        prompts: ids; each has at least one.
        ends: whether a sequence is at its end, of what follows its prompt.
        vocab_size: ids from there on are never drawn.
        seeds: of each sequence's draws; default: its number.
        longest: tokens of a sequence with its prompt, where the model can read no more.

    Raises:
        NonFiniteError: the model's logits are not finite.
    """
    ranks = ranks or Alone()
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(len(prompts))]
    made: list[list[int]] = [[] for _ in prompts]
    rooms = [max_new_tokens if longest is None else min(max_new_tokens, longest - len(prompt)) for prompt in prompts]
    going = [room > 0 for room in rooms]
    new: list[Sequence[int]] = list(prompts)
    while ranks.any(any(going)):
        logits_BV = ranks.whole(next_logits(new))[:, :vocab_size].float().cpu()
        chosen_B = _chosen(logits_BV, prompts, made, going, sampling, generators)
        tokens = ranks.same(torch.tensor(chosen_B)).tolist()
        for row, token in enumerate(tokens):
            if going[row]:
                made[row].append(token)
                going[row] = len(made[row]) < rooms[row] and not ends(made[row])
        # what has ended is fed nothing that counts: one place is written anew, which nobody reads
        new = [[token] if going[row] else [] for row, token in enumerate(tokens)]
    return made


def _chosen(
    logits_BV: Tensor,
    prompts: Sequence[Sequence[int]],
    made: Sequence[Sequence[int]],
    going: Sequence[bool],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> list[int]:
    penalizes = sampling.repetition_penalty != 1
    return [
        draw(logits_V, [*prompts[row], *made[row]] if penalizes else (), sampling, generators[row]) if going[row] else 0
        for row, logits_V in enumerate(logits_BV)
    ]
