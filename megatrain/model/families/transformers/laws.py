"""How a model's own code begins each of its weights: seen on the meta device, where nothing has a value.

A dispatch mode sees the operators that fill tensors. The last one that fills the whole of a weight is the law that it
begins by; what is no plain distribution, such as numbers that are copied in, is unknown.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


class Law(NamedTuple):
    init: Literal["normal", "uniform", "constant"]
    value: float


class Laws(TorchDispatchMode):
    """While it is open, remembers how storages were filled."""

    def __init__(self) -> None:
        super().__init__()
        self._laws: dict[int, Law | None] = {}
        self._kept: list[Tensor] = []  # or another tensor would get the number of one that is gone

    def of(self, weight: Tensor) -> Law | None:
        """None: unknown."""
        return self._laws.get(_storage(weight))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not isinstance(out, Tensor) or not out.is_meta:
            return out
        packet = func.overloadpacket
        if packet in (_aten.ones, _aten.zeros, _aten.full):
            value = {_aten.ones: 1.0, _aten.zeros: 0.0}.get(packet)
            self._record(out, Law("constant", float(args[1]) if value is None else value))
        elif func._schema.is_mutable and isinstance(args[0], Tensor):
            self._record(args[0], _law(packet, args[1:], kwargs or {}))
        return out

    def _record(self, tensor: Tensor, law: Law | None) -> None:
        whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        before = self._laws.get(_storage(tensor))
        if not whole and law == before:
            return
        # a row that is zeroed, as that of padding, begins like the others: each row is a token's
        is_row = not whole and law == Law("constant", 0.0) and before is not None
        if not is_row:
            self._laws[_storage(tensor)] = law if whole else None
        self._kept.append(tensor)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _law(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Law | None:
    if packet is _aten.zero_:
        return Law("constant", 0.0)
    if packet is _aten.fill_ and not isinstance(args[0], Tensor):
        return Law("constant", float(args[0]))
    numbers = [float(value) for value in args if isinstance(value, int | float)]
    if packet is _aten.normal_:
        mean, std = (*numbers, *(0.0, 1.0)[len(numbers) :])[:2]
        mean, std = kwargs.get("mean", mean), kwargs.get("std", std)
        return Law("normal", std) if mean == 0.0 and std > 0 else None
    if packet is _aten.uniform_:
        low, high = (*numbers, *(0.0, 1.0)[len(numbers) :])[:2]
        return Law("uniform", high) if low == -high else None
    return None
