"""Keep what recomputing blocks hold between the passes, the input of each, in the host's memory.

    forward    a block's input leaves for the host while the block computes; the next block begins when it is there
    backward   a block's input is fetched while the block behind it goes through its backward pass

On a GPU copies go through pinned memory on a stream of their own, and streams wait for each other: the host waits for
nothing. Elsewhere they are plain copies.
"""

import itertools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Kept(Protocol):
    """A tensor on the host."""

    def prefetch(self) -> None:
        """Begin to bring it back."""

    def take(self) -> Tensor:
        """The tensor on its device, for what the current stream computes next. May be called again."""


class Copies(Protocol):
    def send(self, tensor: Tensor) -> Kept: ...


def offload_block_inputs(model: nn.Module, blocks: int | None = None, copies: Copies | None = None) -> None:
    """Wrap the forward of blocks that recompute, in place; names of parameters do not change.

    Call it after `compile_blocks`: hooks and streams stay out of the graph.

    Args:
        blocks: so many, from the first. None: all.
        copies: how tensors go to the host and come back; default: by where the model's weights are.
    """
    if copies is None:
        copies = PinnedCopies() if next(model.parameters()).device.type == "cuda" else PlainCopies()
    offload = _Offload(copies)
    for block in itertools.islice(model.get_submodule("blocks").children(), blocks):
        block.forward = offload.around(block.forward)


class _Offload:
    """Of one model."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._kept: list[weakref.ref[Kept]] = []  # in the order of the forward pass; of a pass that was given up, dead

    def around(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The same, with the first input on the host until the backward pass."""

        def offloading(x: Tensor, *others: Any) -> Tensor:
            if not (torch.is_grad_enabled() and x.requires_grad):
                return forward(x, *others)  # no backward pass comes here
            with saved_tensors_hooks(self._pack_alone(x), self._unpack):
                return forward(x, *others)

        return offloading

    def _pack_alone(self, x: Tensor) -> Callable[[Tensor], Any]:
        """Of what a block saves, its input leaves; weights, positions and boundaries of documents do not."""
        storage, shape = x.untyped_storage()._cdata, x.shape  # and not x, which would stay

        def pack(saved: Tensor) -> Any:
            if saved.untyped_storage()._cdata != storage or saved.shape != shape or not saved.is_contiguous():
                return saved
            kept = self._copies.send(saved.detach())
            self._kept.append(weakref.ref(kept))
            return kept

        return pack

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        kept: Kept = packed
        tensor = kept.take()
        while self._kept:
            before = self._kept[-1]()
            if before is not None and before is not kept:
                before.prefetch()
                break
            self._kept.pop()
        return tensor


class PlainCopies:
    """Where device and host are the same memory."""

    def send(self, tensor: Tensor) -> Kept:
        return _Copy(tensor.clone())


class _Copy:
    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def prefetch(self) -> None:
        pass

    def take(self) -> Tensor:
        return self._tensor.clone()


class PinnedCopies:
    """Between a GPU and pinned memory.

    Memory of both sides is handed on without a wait of the host: the computing stream waits for a copy before it may
    write over what was copied, and the copying stream, on which copies stand in order, before it writes into memory
    that the computing stream had.

    Args:
        streams: `torch.cuda`, or what stands for it.
        pin: whether buffers are pinned.
    """

    def __init__(self, streams: Any = torch.cuda, *, pin: bool = True) -> None:
        self._streams = streams
        self._stream = streams.Stream()
        self._pin = pin
        self._free: list[Tensor] = []  # buffers, uint8
        self._last: _Pinned | None = None  # that was sent: its tensor is on both sides

    def send(self, tensor: Tensor) -> Kept:
        if self._last is not None:
            self._last.release()
        buffer = self._buffer(tensor.numel() * tensor.element_size())
        self._last = _Pinned(self, buffer, tensor, self.copy(_view(buffer, tensor.shape, tensor.dtype), tensor))
        return self._last

    def copy(self, target: Tensor, source: Tensor) -> Any:
        """Enqueue it behind all that is computed so far. Returns its event."""
        self._stream.wait_stream(self._streams.current_stream())
        with self._streams.stream(self._stream):
            target.copy_(source, non_blocking=True)
        return self._stream.record_event()

    def wait(self, copied: Any) -> None:
        """What is computed from here on comes after a copy."""
        self._streams.current_stream().wait_event(copied)

    def taken(self, kept: "_Pinned") -> None:
        if self._last is kept:
            self._last = None

    def give_back(self, buffer: Tensor) -> None:
        self._free.append(buffer)

    def _buffer(self, size: int) -> Tensor:
        """One that is free, or a new one in its place. Pinning waits for the device: in the first step only."""
        while self._free:
            buffer = self._free.pop()
            if buffer.numel() >= size:
                return buffer
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pin)


class _Pinned:
    def __init__(self, copies: PinnedCopies, buffer: Tensor, tensor: Tensor, copied: Any) -> None:
        self._copies, self._buffer = copies, buffer
        self._shape, self._dtype, self._device = tensor.shape, tensor.dtype, tensor.device
        self._there: tuple[Tensor, Any] | None = (tensor, copied)  # on the device, and the event of the last copy

    def release(self) -> None:
        """The memory on the device: what is computed from here on may have it."""
        if self._there is not None:
            self._copies.wait(self._there[1])
            self._there = None

    def prefetch(self) -> None:
        if self._there is None:
            tensor = torch.empty(self._shape, dtype=self._dtype, device=self._device)
            self._there = tensor, self._copies.copy(tensor, _view(self._buffer, self._shape, self._dtype))

    def take(self) -> Tensor:
        self.prefetch()
        assert self._there is not None
        tensor = self._there[0]
        self.release()
        self._copies.taken(self)
        return tensor

    def __del__(self) -> None:
        """When autograd is through with it; of a backward pass that was given up, a copy may still be on its way."""
        self.release()
        self._copies.give_back(self._buffer)


def _view(buffer: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return buffer[: shape.numel() * dtype.itemsize].view(dtype).view(shape)
