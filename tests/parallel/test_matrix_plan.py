"""The plan of a matrix exchange, carried out for all ranks in one process."""

from math import prod

import pytest
import torch
from torch import Tensor

from megatrain.parallel.matrix_plan import Piece, Round, plan_rounds
from megatrain.parallel.tensor_parallel import Shard

# name, shape, dimension that tensor parallelism splits
MATRICES = [("wide", (12, 30), 0), ("tall", (30, 12), 1), ("whole", (9, 7), None), ("small", (4, 6), 1)] + [
    (f"more {number}", (8, 10), number % 2) for number in range(5)
]
NO_LIMIT = 10**9


def matrix(name: str) -> Tensor:
    shape = next(shape for one, shape, _ in MATRICES if one == name)
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(map(ord, name))))


def function(x: Tensor) -> Tensor:
    """What no piece of a matrix could know; a view that is not contiguous, as Newton-Schulz may return."""
    return (x.mT * x.sum()).mT


def slices(tensor: int) -> list[list[tuple[str, Tensor, Shard | None]]]:
    """Of each tensor-parallel rank."""
    found = []
    for index in range(tensor):
        shards = [(name, None if dim is None else Shard(dim, index, tensor)) for name, _, dim in MATRICES]
        found.append([(name, shard.of(matrix(name)) if shard else matrix(name), shard) for name, shard in shards])
    return found


def pieces_of(tensor: int, data: int, kind: str) -> list[tuple[list[Piece], Tensor]]:
    """Each rank's pieces, and the flat tensor that they lie in; ranks of a data-parallel group are `tensor` apart.

    Args:
        kind: "replicated" (ZeRO 0), "end to end" (1, 2: all slices laid end to end, and cut into equal parts, the last
            one padded), "each" (3: every slice is cut so).
    """
    ranks = []
    for rank in range(tensor * data):
        own, at = slices(tensor)[rank % tensor], rank // tensor
        pieces, flat, offset = [], [], 0
        total = sum(part.numel() for _, part, _ in own)
        begin = 0
        for name, part, shard in own:
            size = part.numel()
            if kind == "replicated":
                first, last = 0, size
            elif kind == "each":
                share = -(-size // data)
                first, last = min(at * share, size), min((at + 1) * share, size)
            else:
                share = -(-total // data)
                first, last = (min(max(edge * share - begin, 0), size) for edge in (at, at + 1))
            begin += size
            if first < last:
                pieces.append(Piece(name, tuple(part.shape), shard, first, last - first, offset))
                flat.append(part.reshape(-1)[first:last])
                offset += last - first
        ranks.append((pieces, torch.cat([*flat, torch.zeros(3)])))
    return ranks


def carry_out(rounds: list[list[Round]], ranks: list[tuple[list[Piece], Tensor]]) -> None:
    """As `MatrixExchange.apply` on all ranks."""

    def all_to_all(sent: list[Tensor], sizes: list[list[int]], coming: list[list[int]]) -> list[Tensor]:
        messages = [list(packed.split(size)) for packed, size in zip(sent, sizes, strict=True)]
        for to, expected in enumerate(coming):
            assert [messages[source][to].numel() for source in range(len(ranks))] == expected
        return [torch.cat([of[to] for of in messages]) for to in range(len(ranks))]

    def view(rank: int, number: int) -> Tensor:
        piece = ranks[rank][0][number]
        return ranks[rank][1][piece.offset : piece.offset + piece.numel]

    for this in zip(*rounds, strict=True):
        sent = [torch.cat([torch.empty(0), *(view(rank, n) for n in one.given)]) for rank, one in enumerate(this)]
        received = all_to_all(sent, [one.given_sizes for one in this], [one.taken_sizes for one in this])
        sent = []
        for rank, one in enumerate(this):
            results = [owned.split(function(owned.join(received[rank]))) for owned in one.owned]
            answers = [results[m][index][start : start + numel] for m, index, start, numel in one.answers]
            sent.append(torch.cat([torch.empty(0), *answers]))
        received = all_to_all(sent, [one.answer_sizes for one in this], [one.written_sizes for one in this])
        for rank, one in enumerate(this):
            parts = received[rank].split([ranks[rank][0][number].numel for number in one.written])
            for number, part in zip(one.written, parts, strict=True):
                view(rank, number).copy_(part)


@pytest.mark.parametrize("kind", ["replicated", "end to end", "each"])
@pytest.mark.parametrize(("tensor", "data"), [(1, 1), (1, 3), (2, 1), (2, 3), (1, 7)])
@pytest.mark.parametrize("limit", [NO_LIMIT, 400])
def test_every_rank_gets_its_pieces_of_whole_results(kind: str, tensor: int, data: int, limit: int) -> None:
    ranks = pieces_of(tensor, data, kind)
    given = [pieces for pieces, _ in ranks]
    carry_out([plan_rounds(given, rank, limit=limit) for rank in range(len(ranks))], ranks)
    for rank, (pieces, flat) in enumerate(ranks):
        assert sum(piece.numel for piece in pieces) == flat.numel() - 3
        assert not flat[-3:].any(), "padding stays"
        for piece in pieces:
            want = function(matrix(piece.name))
            want = (piece.shard.of(want) if piece.shard else want).reshape(-1)[piece.start :][: piece.numel]
            torch.testing.assert_close(flat[piece.offset :][: piece.numel], want, msg=f"{piece.name} on rank {rank}")


def owned(given: list[list[Piece]], limit: int = NO_LIMIT) -> list[list[list[int]]]:
    """Elements of the matrices that each rank works on, by round."""
    plans = [plan_rounds(given, rank, limit=limit) for rank in range(len(given))]
    return [[[prod(m.shape) * len(m.slices) for m in one.owned] for one in plan] for plan in plans]


def square(number: int, start: int, numel: int) -> Piece:
    return Piece(f"matrix {number}", (10, 10), None, start, numel, 0)


def test_owners_share_the_work() -> None:
    everywhere = [[square(number, rank * 20, 20) for number in range(20)] for rank in range(5)]
    assert owned(everywhere) == [[[100] * 4]] * 5


def test_who_has_most_of_a_matrix_owns_it() -> None:
    """Rank 0 ends inside matrix 1, as under ZeRO-1: one matrix alone travels."""
    given = [[square(0, 0, 100), square(1, 0, 60)], [square(1, 60, 40), square(2, 0, 100), square(3, 0, 100)]]
    first, second = (plan_rounds(given, rank, limit=NO_LIMIT)[0] for rank in (0, 1))
    assert (first.given_sizes, second.given_sizes) == ([160, 0], [40, 200])


def test_a_round_is_within_its_limit_or_a_single_matrix() -> None:
    everywhere = [[square(number, rank * 50, 50) for number in range(7)] for rank in range(2)]
    assert owned(everywhere, limit=250) == [[[100, 100], [100, 100]], [[100, 100], [100]]]
    assert owned(everywhere, limit=1) == [[[100]] * 4, [[100]] * 3 + [[]]]
    replicas = [[square(number, 0, 100) for number in range(4)] for _ in range(2)]
    assert owned(replicas, limit=250) == [[[100], [100]]] * 2, "each result goes to both"


def test_a_gap_is_refused() -> None:
    with pytest.raises(ValueError, match="matrix 0: the ranks' pieces do not make up slice 0 of 1"):
        plan_rounds([[square(0, 0, 40)], [square(0, 50, 50)]], 0, limit=NO_LIMIT)
    half = Piece("half", (5, 10), Shard(0, 0, 2), 0, 50, 0)
    with pytest.raises(ValueError, match="half: the ranks' pieces do not make up slice 1 of 2"):
        plan_rounds([[half]], 0, limit=NO_LIMIT)


def test_the_shape_of_the_whole() -> None:
    assert Piece("", (4, 6), Shard(1, 0, 3), 0, 24, 0).whole == (4, 18)
    assert Piece("", (4, 6), Shard(0, 1, 2), 0, 24, 0).whole == (8, 6)
    assert Piece("", (4, 6), None, 0, 24, 0).whole == (4, 6)
