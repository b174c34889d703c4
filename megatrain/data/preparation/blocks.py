"""From a stream of documents to blocks of tokens: concatenated, or packed into rows by best fit.

Both kinds cut a block at a place that they can name: whoever resumes there makes the same blocks again.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from megatrain.data.folder.manifest import PackedRows, Packing, Recipe
from megatrain.data.preparation.packing import best_fit, cut

END_DTYPE = np.dtype("<u4")

Tokens = NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True)
class Resume:
    """Where the next block begins."""

    document: int = 0  # number among all documents of the input; packed: the first of the window
    position: int = 0  # tokens of that document, or rows of that window, that lie before
    documents: int = 0  # documents of this set that came before it
    tokens: int = 0  # and their tokens
    packed: PackedRows = field(default_factory=PackedRows)  # and the rows of the windows before


class Block(NamedTuple):
    """Payloads as they lie in a shard, and where the block after this one begins; after the last, nothing does."""

    tokens: bytes
    ends: bytes
    targets: tuple[int, ...]
    resume: Resume | None


class BlockMaker(Protocol):
    """Documents come in ascending order, each with its number among all documents of the input."""

    documents: int  # of this set so far, those before a resume included
    tokens: int

    @property
    def packed(self) -> PackedRows | None:
        """What packing came to; None with concatenation."""

    def add(self, document: int, tokens: Tokens) -> Iterator[Block]:
        """Take a document, EOS its last token; the blocks that are full now."""

    def finish(self) -> Iterator[Block]:
        """What is left; nothing may come after it."""


def block_maker(recipe: Recipe, resume: Resume) -> BlockMaker:
    return PackedBlocks(recipe, recipe.packing, resume) if recipe.packing else ConcatBlocks(recipe, resume)


class ConcatBlocks:
    """One stream, cut every `block_tokens` tokens; a block also holds the first token of the next."""

    packed: PackedRows | None = None

    def __init__(self, recipe: Recipe, resume: Resume) -> None:
        self.documents, self.tokens = resume.documents, resume.tokens
        self._resume = resume
        self._buffer = np.empty(recipe.block_tokens + 1, dtype=np.dtype(recipe.dtype).newbyteorder("<"))
        self._filled = 0
        self._ends: list[int] = []
        self._shared = 1 if resume != Resume() else 0  # tokens at the buffer's start that the block before holds too

    def add(self, document: int, tokens: Tokens) -> Iterator[Block]:
        start = self._resume.position if document == self._resume.document else 0
        while start < len(tokens):
            taken = min(len(tokens) - start, len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + taken] = tokens[start : start + taken]
            self._filled += taken
            start += taken
            if start == len(tokens):
                self._ends.append(self._filled)
            if self._filled == len(self._buffer):
                yield self._block(Resume(document, start - 1, self.documents, self.tokens))
                self._buffer[0] = self._buffer[-1]
                self._ends = [1] if self._ends and self._ends[-1] == len(self._buffer) else []
                self._filled = self._shared = 1
        self.documents += 1
        self.tokens += len(tokens)

    def finish(self) -> Iterator[Block]:
        if self._filled > self._shared:
            yield self._block(None)

    def _block(self, resume: Resume | None) -> Block:
        ends = np.array(self._ends, dtype=END_DTYPE).tobytes()
        return Block(self._buffer[: self._filled].tobytes(), ends, (), resume)


class PackedBlocks:
    """Whole rows of `sequence_length + 1` tokens, packed window by window; what a row lacks is filled with EOS."""

    packed: PackedRows

    def __init__(self, recipe: Recipe, packing: Packing, resume: Resume) -> None:
        self.documents, self.tokens, self.packed = resume.documents, resume.tokens, resume.packed
        self._packing = packing
        self._row_tokens = packing.sequence_length + 1
        self._eos = recipe.eos_id
        self._rows = np.empty(
            (recipe.block_tokens // packing.sequence_length, self._row_tokens),
            dtype=np.dtype(recipe.dtype).newbyteorder("<"),
        )
        self._filled = 0  # rows
        self._ends: list[int] = []
        self._targets: list[int] = []
        self._skip = resume.position  # rows of the first window that are written already
        self._window: list[Tokens] = []
        self._window_tokens = 0
        self._window_first: int | None = None

    def add(self, document: int, tokens: Tokens) -> Iterator[Block]:
        if self._window_first is None:
            self._window_first = document
        self._window.append(tokens)
        self._window_tokens += len(tokens)
        if self._window_tokens >= self._packing.window_tokens:
            yield from self._pack_window()

    def finish(self) -> Iterator[Block]:
        if self._window:
            yield from self._pack_window()
        if self._filled:
            yield self._block(None)

    def _pack_window(self) -> Iterator[Block]:
        pieces = [tokens[a:b] for tokens in self._window for a, b in cut(len(tokens), self._row_tokens)]
        rows = best_fit([len(piece) for piece in pieces], self._row_tokens)
        first, before = self._window_first, (self.documents, self.tokens, self.packed)
        assert first is not None
        for number, row in enumerate(rows):
            if number < self._skip:
                continue
            self._put([pieces[piece] for piece in row])
            if self._filled == len(self._rows):
                yield self._block(Resume(first, number + 1, *before))
                self._filled, self._ends, self._targets = 0, [], []
        self._count(pieces, len(rows))
        self._skip, self._window, self._window_tokens, self._window_first = 0, [], 0, None

    def _put(self, pieces: list[Tokens]) -> None:
        row, start, filled = self._rows[self._filled], self._filled * self._row_tokens, 0
        for piece in pieces:
            row[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._ends.append(start + filled)
        row[filled:] = self._eos
        self._targets.append(filled - len(pieces))
        self._filled += 1

    def _count(self, pieces: list[Tokens], rows: int) -> None:
        """Add a window to the totals. `tokens` is also where its first document would stand in one long stream."""
        lengths = np.array([len(tokens) for tokens in self._window])
        last = self.tokens + np.cumsum(lengths) - 1
        length = self._packing.sequence_length
        held = sum(map(len, pieces))
        more = PackedRows(
            rows=rows,
            padding=rows * self._row_tokens - held,
            pieces=len(pieces),
            documents_cut=int((lengths > self._row_tokens).sum()),
            documents_cut_by_concat=int(((last - lengths + 1) // length != last // length).sum()),
            targets=held - len(pieces),
        )
        totals = asdict(self.packed)
        self.packed = PackedRows(**{name: totals[name] + value for name, value in asdict(more).items()})
        self.documents += len(self._window)
        self.tokens += int(lengths.sum())

    def _block(self, resume: Resume | None) -> Block:
        ends = np.array(self._ends, dtype=END_DTYPE).tobytes()
        return Block(self._rows[: self._filled].tobytes(), ends, tuple(self._targets), resume)
