"""A key-value cache, attached from outside to a model that knows nothing of it.

While it is open, something else stands in the place of every `AttentionCore`: it keeps the keys and values that come by
and attends over all that it has. What hangs on the core itself, such as the all-to-alls of context parallelism, is
left out with it: each context-parallel rank then sees sequences of its own, as a data-parallel one does.

A key's place in the cache is its position in its sequence, so that prompts of different length, padded behind their
end, need no shifting; what stands at a place that a sequence has not reached is never seen.

Shape suffixes: B sequences, S positions that are fed, T places of the cache, H heads, G key-value heads, K head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from megatrain.kernels.attention import attend_to, attention
from megatrain.model.attention import AttentionCore
from megatrain.model.window import Window


class KeyValueCache:
    """Where the positions that are fed next stand, for all layers.

    Args:
        places: the most positions of a sequence.
        rows_multiple: the positions that are fed are so many, or a multiple of it: tensor-parallel ranks that share a
            sequence have parts of one size. What fills them up goes to a place behind all others.
    """

    def __init__(self, places: int, rows_multiple: int = 1) -> None:
        self.places = places
        self._multiple = rows_multiple
        self._lengths: list[int] = []  # of each sequence, as it is in the cache
        self._masks: dict[Window, Tensor | None] = {}
        self.is_empty = True
        self.positions_BS = torch.zeros(0, 0, dtype=torch.int64)
        self.last_B = torch.zeros(0, dtype=torch.int64)

    def feed(self, new: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """What the model is called with to read the next tokens of each sequence: ids and positions, int64 [B, S].

        Args:
            new: of each sequence; of one that has ended, none.
        """
        self.is_empty = not self._lengths
        lengths = self._lengths or [0] * len(new)
        size = -(-max(1, *map(len, new)) // self._multiple) * self._multiple
        ids_BS = torch.tensor([[*tokens, *[0] * (size - len(tokens))] for tokens in new])
        begins_B1 = torch.tensor(lengths)[:, None]
        self.last_B = torch.tensor([len(tokens) - 1 for tokens in new])
        positions_BS = begins_B1 + torch.arange(size)
        self.positions_BS = positions_BS.where(torch.arange(size) <= self.last_B[:, None], -1)
        self._lengths = [length + len(tokens) for length, tokens in zip(lengths, new, strict=True)]
        assert max(self._lengths) <= self.places, "the caller counts"
        self._masks = {}
        self.last_B = self.last_B.to(device)
        self.positions_BS = self.positions_BS.to(device)
        return ids_BS.to(device), self.positions_BS.clamp(min=0)

    def columns(self) -> Tensor:
        """Places of what is fed, [B, S]; padding goes behind all others."""
        return self.positions_BS.where(self.positions_BS >= 0, self.places)

    def seen(self, window: Window) -> tuple[int, int]:
        """The first place that any position which is fed sees through a window, and the one behind the last."""
        first, behind = min(self._lengths) - self.positions_BS.shape[1], max(self._lengths)
        return (0 if window[0] < 0 else max(0, first - window[0])), behind

    def mask(self, window: Window) -> Tensor | None:
        """Whether a position sees a place of `seen`, bool [B, S, places]; None: all see all of them."""
        if window not in self._masks:
            first, behind = self.seen(window)
            places = torch.arange(first, behind, device=self.positions_BS.device)
            # what fills up sees the first place, so that its softmax is over something; nobody reads it
            at_BS1 = self.positions_BS.clamp(min=first)[:, :, None]
            mask_BST = places <= at_BS1
            if window[0] >= 0:
                mask_BST &= places >= at_BS1 - window[0]
            self._masks[window] = None if bool(mask_BST.all()) else mask_BST
        return self._masks[window]


class CachedCore(nn.Module):
    """Stands for an `AttentionCore`."""

    def __init__(self, core: AttentionCore, cache: KeyValueCache) -> None:
        super().__init__()
        self.window, self.scale = core.window, core.scale
        self._cache = cache
        self._keys = self._values = torch.zeros(0)  # [B, G, T + 1, K]

    def forward(self, q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        cache = self._cache
        if cache.is_empty:
            shape = (k_BSGK.shape[0], k_BSGK.shape[2], cache.places + 1, k_BSGK.shape[3])
            self._keys, self._values = (k_BSGK.new_zeros(shape) for _ in range(2))
        rows = torch.arange(len(q_BSHK), device=q_BSHK.device)[:, None]
        self._keys.transpose(1, 2)[rows, cache.columns()] = k_BSGK
        self._values.transpose(1, 2)[rows, cache.columns()] = v_BSGK
        if cache.is_empty:  # padding stands behind all of a sequence, where causal attention does not look
            return attention(q_BSHK, k_BSGK, v_BSGK, window=self.window, scale=self.scale)
        places = slice(*cache.seen(self.window))
        keys, values = self._keys[:, :, places], self._values[:, :, places]
        return attend_to(q_BSHK, keys, values, cache.mask(self.window), scale=self.scale)


@contextmanager
def key_value_cache(model: nn.Module, places: int, rows_multiple: int = 1) -> Iterator[KeyValueCache]:
    """While it is open, the model's attention looks at what it was fed before as well, and its head gives logits of the
    last token of each sequence only, [B, 1, V].

    Feed it what `KeyValueCache.feed` makes of the tokens, as `input_ids_BS` and `position_ids_BS`. Compiled blocks run
    eagerly: each length would be a graph of its own.
    """
    cache = KeyValueCache(places, rows_multiple)
    parents = [(module, name) for module in model.modules() for name, _ in _cores(module)]
    cores = {(module, name): getattr(module, name) for module, name in parents}
    last_only = model.get_submodule("head").register_forward_pre_hook(
        lambda _, inputs: (inputs[0][torch.arange(len(cache.last_B)), cache.last_B][:, None], *inputs[1:])
    )
    try:
        for (module, name), core in cores.items():
            setattr(module, name, CachedCore(core, cache))
        with torch.compiler.set_stance("force_eager"):
            yield cache
    finally:
        last_only.remove()
        for (module, name), core in cores.items():
            setattr(module, name, core)


def _cores(module: nn.Module) -> list[tuple[str, AttentionCore]]:
    return [(name, child) for name, child in module.named_children() if isinstance(child, AttentionCore)]
