"""Tokens of an example or sample as text, for people: what is learnt of it, and what is not its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatrain.data.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring tokens that are alike.

    Attributes:
        learnt: a target of the loss.
        added: by the tokenizer or a template; not in the row.
        label: of a classifier, at this token.
    """

    text: str
    tokens: int
    learnt: bool
    added: bool
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """One example, or one row that became none: `pieces` is then empty, and `note` says why."""

    where: str
    pieces: tuple[Piece, ...]
    token_ids: tuple[int, ...]
    targets: int
    note: str | None

    def to_json(self) -> dict[str, Any]:
        pieces = [{name: getattr(piece, name) for name in Piece.__slots__} for piece in self.pieces]
        return {
            "where": self.where,
            "tokens": len(self.token_ids),
            "targets": self.targets,
            "note": self.note,
            "pieces": pieces,
            "token_ids": list(self.token_ids),
        }


def pieces_of(
    tokenizer: Tokenizer,
    ids: NDArray[np.int64],
    learnt: NDArray[np.bool_],
    added: NDArray[np.bool_],
    labels: Sequence[str | None],
) -> Iterator[Piece]:
    """Neighbouring tokens that are alike, as text; a token with a label alone. All of [n]."""
    begin, text = 0, ""
    kinds = list(zip(learnt.tolist(), added.tolist(), labels, strict=True))
    for end in range(1, len(ids) + 1):
        if end < len(ids) and kinds[end] == kinds[begin] and kinds[begin][2] is None:
            continue
        whole = tokenizer.decode(ids[:end])  # of all before it, too: a token's blanks depend on what stands before
        part = whole[len(text) :] if whole.startswith(text) else tokenizer.decode(ids[begin:end])
        yield Piece(part, end - begin, *kinds[begin])
        begin, text = end, whole
