"""What a rank does besides computing: what it sends and to whom, and where its host waits for its device."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatrain.parallel.mesh import Mesh

_WAITS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
}
_NAMES = {  # torch has two families of collectives
    "allreduce_": "all_reduce",
    "_allgather_base_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
}
_TRAVELS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}  # times (n-1)/n of the whole tensor, in a ring


class Traffic(TorchDispatchMode):
    """Watches one rank.

    Attributes:
        sent: (group, collective, dtype) -> bytes of the whole tensor; the group is "tensor", "replica", "near" or
            "world".
        calls: the same -> number.
        waits: the host's waits for numbers of its device -> number, by whose line it is: "megatrain" or "deepspeed".
        on_cpu: ops whose results are on the CPU -> number.
        moved: file of this project that calls an op -> bytes that the op reads and writes.
    """

    def __init__(self, mesh: Mesh, near: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self._groups = {mesh.tensor_group.group_name: "tensor", mesh.dp_cp_group.group_name: "replica"}
        self._sizes = {"tensor": mesh.tensor_parallel, "replica": mesh.replicas}
        if near is not None:
            self._groups[near.group_name], self._sizes["near"] = "near", near.size()
        self.sent: Counter[tuple[str, str, str]] = Counter()
        self.calls: Counter[tuple[str, str, str]] = Counter()
        self.waits: Counter[str] = Counter()
        self.on_cpu: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()

    def over(self, group: str) -> float:
        """Bytes that this rank sends to others of the group, in rings."""
        size = self._sizes[group]
        return sum(n * _TRAVELS[name] * (size - 1) / size for (to, name, _), n in self.sent.items() if to == group)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), out))
        if func.namespace in ("c10d", "_c10d_functional"):
            self._collective(func, tree_leaves((args, kwargs)), [*given, *made])
        elif func in _WAITS:
            self.waits[_whose()] += 1
        else:
            self.on_cpu.update(str(func) for x in made if x.device.type == "cpu")
            self._move(func, given, made)
        return out

    def _collective(self, func: Any, arguments: list[Any], tensors: list[Tensor]) -> None:
        name = _NAMES.get(func._schema.name.split("::")[1])
        if name is None:
            return  # what waits for one
        group = next((self._groups[name] for name in map(_group_name, arguments) if name in self._groups), "world")
        whole = max(tensors, key=lambda x: x.numel() * x.element_size())
        key = (group, name, str(whole.dtype).removeprefix("torch."))
        self.sent[key] += whole.numel() * whole.element_size()
        self.calls[key] += 1

    def _move(self, func: Any, given: list[Tensor], made: list[Tensor]) -> None:
        if func.is_view or "empty" in str(func):
            return
        called_by = Path(next(x for x in reversed(_files()) if "/torch/" not in x)).name
        if func.overloadpacket == torch.ops.aten.copy_:
            given = given[1:]  # where it writes, it does not read
        self.moved[called_by] += sum(x.numel() * x.element_size() for x in [*given, *made])


def _group_name(argument: Any) -> str | None:
    """One family is given a group's name, the other the group, in a box."""
    if isinstance(argument, torch.ScriptObject):
        try:
            return dist.ProcessGroup.unbox(argument).group_name
        except RuntimeError:  # another kind of object
            return None
    return argument if isinstance(argument, str) else None


def _files() -> list[str]:
    """Of the functions that are being run, the innermost last."""
    files, frame = [], sys._getframe(1)
    while frame := frame.f_back:
        if frame.f_code.co_filename != __file__:
            files.append(frame.f_code.co_filename)
    return files[::-1]


def _whose() -> str:
    return next(name for file in reversed(_files()) for name in ("deepspeed", "megatrain") if f"/{name}/" in file)
