"""Whole matrices for an optimizer that needs them, where each rank holds pieces of many.

ZeRO cuts matrices into flat ranges, tensor parallelism into slices; without ZeRO, replicas hold the same. Each matrix
has one owner among all ranks. In a round

    all-to-all    pieces of the matrices go to their owners, in the dtype of the computation
    owner         joins ranges to slices, and slices to matrices, and computes
    all-to-all    pieces of the results go to every rank that holds them

and the messages of the next round travel while an owner computes. Who owns what, and when, is planned once, by the same
arithmetic on every rank. In a round an owner sends at most ROUND_ELEMENTS, or one matrix that has more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatrain.parallel.matrix_plan import Piece, Round, plan_rounds

ROUND_ELEMENTS = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Unit:
    """A tensor that the optimizer updates, and the pieces of matrices that it holds."""

    parameter: Tensor
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    units: Sequence[Unit]
    pieces: list[tuple[int, Piece]]  # each with the number of its unit
    rounds: list[Round]


@dataclass(frozen=True, slots=True)
class _Message:
    """What this rank gets in an all-to-all, and the work that brings it."""

    received: Tensor
    work: dist.Work | None

    def wait(self) -> Tensor:
        if self.work is not None:
            self.work.wait()  # on a GPU its stream waits, not the host
        return self.received


class MatrixExchange:
    """Every rank must build it, and call `apply` alike: both are collective.

    Args:
        calls: for each call of the optimizer in a step, the units that it updates, in the same order on every rank.
        control_group: all ranks, over gloo. Matrices travel in the default group.
    """

    def __init__(self, calls: Sequence[Sequence[Unit]], control_group: dist.ProcessGroup) -> None:
        self._ranks = dist.get_world_size()
        mine = [[piece for unit in units for piece in unit.pieces] for units in calls]
        of_ranks: list[list[list[Piece]]] = [[]] * self._ranks
        dist.all_gather_object(of_ranks, mine, group=control_group)
        self._calls: dict[tuple[int, ...], _Call] = {}
        for number, units in enumerate(calls):
            pieces = [(at, piece) for at, unit in enumerate(units) for piece in unit.pieces]
            rounds = plan_rounds([theirs[number] for theirs in of_ranks], dist.get_rank(), limit=ROUND_ELEMENTS)
            self._calls[tuple(id(unit.parameter) for unit in units)] = _Call(units, pieces, rounds)

    def apply(
        self,
        units: Sequence[Tensor],
        values: Sequence[Tensor],
        function: Callable[[Tensor], Tensor],
        *,
        scale: Callable[[Sequence[int]], float],
        dtype: torch.dtype,
    ) -> None:
        """Replace each whole matrix X of values by scale(shape of X) · function(X), in place.

        Args:
            units: the parameters of one of the `calls`.
            values: of each, contiguous and as long. What is in no piece, as padding, stays as it is.
            function: [out, in] -> [out, in], in `dtype`. Called on the owner only.
        """
        call = self._calls[tuple(map(id, units))]
        flat = [value.view(-1) for value in values]
        views = [flat[unit].narrow(0, piece.offset, piece.numel) for unit, piece in call.pieces]
        factors = [scale(piece.whole) for _, piece in call.pieces]
        device = values[0].device
        coming = [self._gather(one, views, dtype, device) for one in call.rounds[:1]]
        for number, one in enumerate(call.rounds):
            received = coming.pop().wait()
            coming += [self._gather(following, views, dtype, device) for following in call.rounds[number + 1 :][:1]]
            results = [matrix.split(function(matrix.join(received))) for matrix in one.owned]
            del received
            self._scatter(one, results, views, factors, dtype, device)

    def _gather(self, one: Round, views: list[Tensor], dtype: torch.dtype, device: torch.device) -> _Message:
        """Send pieces to the owners of their matrices."""
        packed = _packed([views[number] for number in one.given], dtype, device)
        return self._all_to_all(packed, one.given_sizes, one.taken_sizes)

    def _scatter(
        self,
        one: Round,
        results: list[list[Tensor]],
        views: list[Tensor],
        factors: list[float],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Send results to all who hold pieces of the matrices, and put what comes in their place."""
        answers = [results[matrix][index].narrow(0, start, numel) for matrix, index, start, numel in one.answers]
        packed = _packed(answers, dtype, device)
        results.clear()
        received = self._all_to_all(packed, one.answer_sizes, one.written_sizes).wait()
        if one.written:
            own = [views[number] for number in one.written]
            torch._foreach_copy_(own, received.split([view.numel() for view in own]))
            torch._foreach_mul_(own, [factors[number] for number in one.written])

    def _all_to_all(self, packed: Tensor, sizes: list[int], coming_sizes: list[int]) -> _Message:
        if self._ranks == 1:
            return _Message(packed, None)
        received = packed.new_empty(sum(coming_sizes))
        return _Message(received, dist.all_to_all_single(received, packed, coming_sizes, sizes, async_op=True))


def _packed(parts: list[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One after the other."""
    packed = torch.empty(sum(part.numel() for part in parts), dtype=dtype, device=device)
    if parts:
        torch._foreach_copy_(packed.split([part.numel() for part in parts]), parts)
    return packed
