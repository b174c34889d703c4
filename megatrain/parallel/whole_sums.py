"""Sums over whole weights, and over their rows and columns, where each rank holds pieces of them.

ZeRO cuts weights into flat ranges, tensor parallelism into slices; replicas hold the same, and one of them counts. A
range is at most three rectangles of the weight; all ranks add up their sums over them. So every rank knows, of every
matrix, one number for each row and for each column, and no matrix travels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatrain.parallel.matrix_exchange import Unit
from megatrain.parallel.matrix_plan import Piece

ELEMENTS_AT_ONCE = 16 * 1024 * 1024  # whose squares are in memory


class WholeTensor(NamedTuple):
    """A weight, and where its numbers lie among those of all: first its rows, then its columns, of matrices alone."""

    name: str
    shape: tuple[int, ...]
    number: int
    rows: int
    columns: int

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2


@dataclass(frozen=True, slots=True)
class _Part:
    """A rectangle of a matrix, or a range of another weight, that this rank holds.

    Attributes:
        unit, offset: which tensor of a call it lies in, and from where on.
        row, column: where it begins in the whole matrix.
        counts: whether sums take it from this rank.
    """

    tensor: WholeTensor
    unit: int
    offset: int
    sizes: tuple[int, int]
    row: int
    column: int
    counts: bool

    def of(self, flat: Sequence[Tensor]) -> Tensor:
        """A view [rows, columns] of the unit it lies in."""
        return flat[self.unit].narrow(0, self.offset, self.sizes[0] * self.sizes[1]).view(self.sizes)


class CallTensors:
    """The weights of which the optimizer updates pieces in one call. All methods with sums are collective.

    Args:
        tensors: on every rank the same, those included that it has no piece of.
        alone: there are no other ranks to add sums up with.
    """

    def __init__(
        self, tensors: Sequence[WholeTensor], parts: Sequence[_Part], device: torch.device, *, alone: bool
    ) -> None:
        self._tensors, self._parts, self._alone = tensors, parts, alone
        self._elements = torch.tensor([float(math.prod(t.shape)) for t in tensors], device=device)
        size = sum(sum(t.shape) for t in tensors if t.is_matrix)
        self._factors = torch.zeros(size, device=device)
        self._lengths = torch.empty(size, device=device)  # over which each is a mean
        for tensor in tensors:
            if tensor.is_matrix:
                self.row_means(tensor, self._lengths).fill_(tensor.shape[1])
                self.column_means(tensor, self._lengths).fill_(tensor.shape[0])

    def named_factors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, rows fp32 [m], columns fp32 [n]) of every matrix: views of the state."""
        for tensor in self._tensors:
            if tensor.is_matrix:
                yield tensor.name, self.row_means(tensor, self._factors), self.column_means(tensor, self._factors)

    @staticmethod
    def row_means(tensor: WholeTensor, of_all: Tensor) -> Tensor:
        return of_all.narrow(0, tensor.rows, tensor.shape[0])

    @staticmethod
    def column_means(tensor: WholeTensor, of_all: Tensor) -> Tensor:
        return of_all.narrow(0, tensor.columns, tensor.shape[1])

    def move_factors(self, gradients: Sequence[Tensor], moved: float | Tensor, eps: float) -> None:
        """Rows and columns ← (1 − moved) of themselves + moved · the means of gradients² + eps.

        Args:
            gradients: of each unit, flat.
        """
        sums = torch.zeros_like(self._factors)
        for part in self._parts:
            if part.counts and part.tensor.is_matrix:
                squares = part.of(gradients).square()
                rows, columns = part.sizes
                self.row_means(part.tensor, sums).narrow(0, part.row, rows).add_(squares.sum(1))
                self.column_means(part.tensor, sums).narrow(0, part.column, columns).add_(squares.sum(0))
        self._add_up(sums)
        self._factors.lerp_(sums.div_(self._lengths).add_(eps), moved)

    def normalize(self, gradients: Sequence[Tensor]) -> None:
        """Of matrices, divide by √V, V = rows · columnsᵀ / mean(rows), in place."""
        inverse = self._factors.clone()
        for tensor in self._tensors:
            if tensor.is_matrix:
                rows = self.row_means(tensor, inverse)
                rows.div_(rows.mean())
        inverse.rsqrt_().nan_to_num_(nan=0.0, posinf=0.0)  # zeros where no update was kept yet
        for part in self._parts:
            if part.tensor.is_matrix:
                height, width = part.sizes
                row = self.row_means(part.tensor, inverse).narrow(0, part.row, height)
                column = self.column_means(part.tensor, inverse).narrow(0, part.column, width)
                part.of(gradients).mul_(row.unsqueeze(1)).mul_(column)

    def root_mean_squares(self, values: Sequence[Tensor]) -> Tensor:
        """Of each whole weight, fp32 [weights]."""
        sums = torch.zeros_like(self._elements)
        for part in self._parts:
            if part.counts:
                sums[part.tensor.number] += part.of(values).square().sum()
        self._add_up(sums)
        return sums.div_(self._elements).sqrt_()

    def scale(self, values: Sequence[Tensor], factors: Tensor) -> None:
        """Multiply each weight's values by its factor, in place."""
        for part in self._parts:
            part.of(values).mul_(factors[part.tensor.number])

    def _add_up(self, sums: Tensor) -> None:
        if not self._alone:
            dist.all_reduce(sums)


class WholeTensors:
    """Every rank must build it: collective.

    Args:
        calls: for each call of the optimizer in a step, the units that it updates, in the same order on every rank.
        counts: whether sums take a piece from this rank: of those that hold the same, one must.
        control_group: all ranks, over gloo; None: there is one process alone. Sums are made in the default group.

    Raises:
        ValueError: the pieces that count do not make up every weight.
    """

    def __init__(
        self,
        calls: Sequence[Sequence[tuple[Unit, Sequence[bool]]]],
        control_group: dist.ProcessGroup | None,
    ) -> None:
        self._calls: dict[tuple[int, ...], CallTensors] = {}
        everywhere = _gathered([_counted(units) for units in calls], control_group)
        for number, units in enumerate(calls):
            tensors = _tensors([theirs[number] for theirs in everywhere])
            by_name = {tensor.name: tensor for tensor in tensors}
            parts = [
                part
                for at, (unit, counts) in enumerate(units)
                for piece, counted in zip(unit.pieces, counts, strict=True)
                for part in _parts(by_name[piece.name], piece, at, counted)
            ]
            key = tuple(id(unit.parameter) for unit, _ in units)
            device = units[0][0].parameter.device if units else torch.device("cpu")
            self._calls[key] = CallTensors(tensors, parts, device, alone=control_group is None)

    def call(self, parameters: Sequence[Tensor]) -> CallTensors:
        """Args: the units of one of the `calls`."""
        return self._calls[tuple(map(id, parameters))]

    def named_factors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """See `CallTensors.named_factors`."""
        for call in self._calls.values():
            yield from call.named_factors()


def of_one_process(parameters: Sequence[Tensor]) -> WholeTensors:
    """Of weights that are whole, and on no other rank."""
    pieces = (Piece(str(at), tuple(p.shape), None, 0, p.numel(), 0) for at, p in enumerate(parameters))
    units = [(Unit(p, (piece,)), (True,)) for p, piece in zip(parameters, pieces, strict=True)]
    return WholeTensors([units], None)


_Counted = dict[str, tuple[tuple[int, ...], int]]  # shape, and how many elements count, by name


def _counted(units: Sequence[tuple[Unit, Sequence[bool]]]) -> _Counted:
    found: _Counted = {}
    for unit, counts in units:
        for piece, counted in zip(unit.pieces, counts, strict=True):
            before = found.get(piece.name, (piece.whole, 0))[1]
            found[piece.name] = piece.whole, before + piece.numel * counted
    return found


def _gathered(mine: list[_Counted], group: dist.ProcessGroup | None) -> list[list[_Counted]]:
    if group is None:
        return [mine]
    everywhere: list[list[_Counted]] = [[]] * dist.get_world_size(group)
    dist.all_gather_object(everywhere, mine, group=group)
    return everywhere


def _tensors(of_ranks: Sequence[_Counted]) -> list[WholeTensor]:
    counted: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for theirs in of_ranks:
        for name, (shape, elements) in theirs.items():
            shapes[name] = shape
            counted[name] = counted.get(name, 0) + elements
    found, at = [], 0
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        if counted[name] != math.prod(shape):
            raise ValueError(f"{name}: the ranks' pieces do not make up its shape {shape}")
        is_matrix = len(shape) == 2
        found.append(WholeTensor(name, shape, number, at, at + shape[0] if is_matrix else at))
        at += sum(shape) if is_matrix else 0
    return found


def _parts(tensor: WholeTensor, piece: Piece, unit: int, counts: bool) -> Iterator[_Part]:
    """The rectangles of a flat range: a ragged start, whole rows, a ragged end."""
    if not tensor.is_matrix:
        yield _Part(tensor, unit, piece.offset, (1, piece.numel), 0, 0, counts)
        return
    width = piece.shape[1]
    row_0, column_0 = (
        piece.shard.index * piece.shape[dim] if piece.shard is not None and piece.shard.dim == dim else 0
        for dim in (0, 1)
    )
    at, end = piece.start, piece.start + piece.numel
    while at < end:
        row, column = divmod(at, width)
        whole_rows = 0 if column else min((end - at) // width, max(1, ELEMENTS_AT_ONCE // width))
        sizes = (whole_rows, width) if whole_rows else (1, min(width - column, end - at))
        yield _Part(tensor, unit, piece.offset + at - piece.start, sizes, row_0 + row, column_0 + column, counts)
        at += sizes[0] * sizes[1]
