"""Who works on which matrix, and which pieces travel where: the plan of a `MatrixExchange`, without any ranks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from megatrain.parallel.tensor_parallel import Shard

_Range = tuple[int, int]  # where it begins in a slice, and how long it is
_Holder = tuple[int, int]  # a rank, and the number of a piece there


@dataclass(frozen=True, slots=True)
class Piece:
    """What a rank holds of a matrix: a flat range of its (possibly tensor-parallel) slice.

    Attributes:
        shape: of the slice.
        start: in the slice's row-major order.
        offset: where the range begins in the tensor that the optimizer updates.
    """

    name: str
    shape: tuple[int, ...]
    shard: Shard | None
    start: int
    numel: int
    offset: int

    @property
    def whole(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        if self.shard is None:
            return self.shape
        return tuple(n * self.shard.count if dim == self.shard.dim else n for dim, n in enumerate(self.shape))


@dataclass(slots=True)
class OwnedMatrix:
    """A matrix that this rank works on: for each slice, its shape and where its ranges are in what was received."""

    shape: tuple[int, ...]
    dim: int
    slices: list[list[_Range]]

    def join(self, received: Tensor) -> Tensor:
        parts = []
        for ranges in self.slices:
            pieces = [received.narrow(0, at, numel) for at, numel in ranges]
            parts.append((pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view(self.shape))
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)

    def split(self, result: Tensor) -> list[Tensor]:
        """Its slices, each flat."""
        return [part.reshape(-1) for part in result.chunk(len(self.slices), self.dim)]


@dataclass(slots=True)
class Round:
    """What one rank does in a round. Sizes are elements, by rank.

    Attributes:
        given, given_sizes: numbers of its pieces that go to owners, in this order.
        taken_sizes: what it gets as an owner.
        owned: the matrices it works on.
        answers, answer_sizes: (matrix of `owned`, slice, start, length) of what goes back, in this order.
        written, written_sizes: numbers of its pieces that results come for, in this order.
    """

    given: list[int]
    given_sizes: list[int]
    taken_sizes: list[int]
    owned: list[OwnedMatrix]
    answers: list[tuple[int, int, int, int]]
    answer_sizes: list[int]
    written: list[int]
    written_sizes: list[int]


@dataclass(slots=True)
class _Matrix:
    piece: Piece  # any one
    holders: dict[int, dict[_Range, list[_Holder]]] = field(default_factory=dict)  # by slice
    held: dict[int, int] = field(default_factory=dict)  # elements by rank

    @property
    def cost(self) -> int:
        """Grows as the operations of an update that multiplies it with its own transpose, again and again."""
        short, long = sorted(self.piece.whole)
        return short * short * (2 * long + short)

    @property
    def elements(self) -> int:
        """Of its results, which each rank that holds a piece gets: of replicas without ZeRO all."""
        return sum(self.held.values())

    def check(self) -> None:
        """Raises ValueError: the ranges do not make up every slice."""
        count, size = self.piece.shard.count if self.piece.shard else 1, prod(self.piece.shape)
        for index in range(count):
            end = 0
            for start, numel in sorted(self.holders.get(index, {})):
                if start != end:
                    break
                end += numel
            if end != size:
                raise ValueError(f"{self.piece.name}: the ranks' pieces do not make up slice {index} of {count}")


def plan_rounds(of_ranks: Sequence[Sequence[Piece]], rank: int, *, limit: int) -> list[Round]:
    """The rounds of one rank, from the pieces of all; every rank that asks has as many.

    Args:
        limit: elements that an owner sends in a round; a matrix that has more has a round to itself.

    Raises:
        ValueError: the pieces do not make up every matrix.
    """
    matrices: dict[str, _Matrix] = {}
    for holder, pieces in enumerate(of_ranks):
        for number, piece in enumerate(pieces):
            matrix = matrices.setdefault(piece.name, _Matrix(piece))
            ranges = matrix.holders.setdefault(piece.shard.index if piece.shard else 0, {})
            ranges.setdefault((piece.start, piece.numel), []).append((holder, number))
            matrix.held[holder] = matrix.held.get(holder, 0) + piece.numel
    for matrix in matrices.values():
        matrix.check()
    queues = _owners(matrices.values(), len(of_ranks))
    rounds = []
    while any(queues):
        this = [(owner, matrix) for owner, queue in enumerate(queues) for matrix in _next(queue, limit)]
        rounds.append(_round(this, rank, len(of_ranks)))
    return rounds


def _owners(matrices: Iterable[_Matrix], ranks: int) -> list[list[_Matrix]]:
    """The matrices of each rank, the costliest first: no rank has more than its share where that can be, and then one
    that has most of a matrix is its owner."""
    by_cost = sorted(matrices, key=lambda matrix: -matrix.cost)
    share = max([sum(matrix.cost for matrix in by_cost) / ranks, *(matrix.cost for matrix in by_cost[:1])])
    queues: list[list[_Matrix]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for matrix in by_cost:
        owner = min(matrix.held, key=lambda r: (-matrix.held[r], loads[r], r))
        if loads[owner] + matrix.cost > share:
            owner = min(range(ranks), key=loads.__getitem__)
        queues[owner].append(matrix)
        loads[owner] += matrix.cost
    return queues


def _next(queue: list[_Matrix], limit: int) -> list[_Matrix]:
    taken: list[_Matrix] = []
    elements = 0
    while queue and (not taken or elements + queue[0].elements <= limit):
        elements += queue[0].elements
        taken.append(queue.pop(0))
    return taken


def _round(matrices: list[tuple[int, _Matrix]], rank: int, ranks: int) -> Round:
    """Every rank goes through the pieces in the same order, so that both ends of a message agree on it."""
    given: list[list[int]] = [[] for _ in range(ranks)]
    written: list[list[int]] = [[] for _ in range(ranks)]
    answers: list[list[tuple[int, int, int, int]]] = [[] for _ in range(ranks)]
    given_sizes, taken_sizes, answer_sizes, written_sizes = ([0] * ranks for _ in range(4))
    taken: list[list[list[tuple[int, int, int]]]] = []  # by matrix and slice: (provider, where in its message, length)
    for at, (owner, matrix) in enumerate(matrices):
        here = owner == rank
        if here:
            taken.append([])
        for index in sorted(matrix.holders):
            places = []
            for (start, numel), holders in sorted(matrix.holders[index].items()):
                provider, number = next((one for one in holders if one[0] == owner), holders[at % len(holders)])
                if provider == rank:
                    given[owner].append(number)
                    given_sizes[owner] += numel
                if here:
                    places.append((provider, taken_sizes[provider], numel))
                    taken_sizes[provider] += numel
                for holder, theirs in holders:
                    if here:
                        answers[holder].append((len(taken) - 1, index, start, numel))
                        answer_sizes[holder] += numel
                    if holder == rank:
                        written[owner].append(theirs)
                        written_sizes[owner] += numel
            if here:
                taken[-1].append(places)
    begins = [0, *accumulate(taken_sizes)]
    owned = [
        OwnedMatrix(
            piece.shape,
            piece.shard.dim if piece.shard else 0,
            [[(begins[provider] + place, numel) for provider, place, numel in places] for places in of_slices],
        )
        for piece, of_slices in zip((m.piece for owner, m in matrices if owner == rank), taken, strict=True)
    ]
    return Round(
        [number for numbers in given for number in numbers],
        given_sizes,
        taken_sizes,
        owned,
        [answer for several in answers for answer in several],
        answer_sizes,
        [number for numbers in written for number in numbers],
        written_sizes,
    )
