"""The prepared folders of a run, opened and checked together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import DataError
from megatrain.config import ReadingSection, Source
from megatrain.data.folder.storage import descriptor_budget
from megatrain.data.loading.batch import Row, Rows
from megatrain.data.loading.shards import PreparedData
from megatrain.data.ordering.permutation import each
from megatrain.data.ordering.shuffle import SourceSize

Int64 = NDArray[np.int64]


class OpenSources:
    """Reads rows of `sequence_length` from several prepared folders.

    Raises:
        DataError: a folder is missing or damaged, was made with another tokenizer than the first, does not go with the
            sequence length, or is shorter than one row.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        sequence_length: int,
        *,
        with_ends: bool,
        reading: ReadingSection | None = None,
    ) -> None:
        self.sequence_length = sequence_length
        self._with_ends = with_ends
        open_files = max(4, descriptor_budget() // len(sources))
        self.data = [PreparedData(source.path, reading, open_files=open_files) for source in sources]
        self.sizes = [self._size(data) for data in self.data]
        for data in self.data[1:]:
            if data.manifest.tokenizer_sha256 != self.data[0].manifest.tokenizer_sha256:
                raise DataError(
                    f"{data.path}: was made with another tokenizer than {self.data[0].path}. Prepare it again."
                )

    def read(self, source: int, block: int, row: int) -> Row:
        """One row; without document ends where nobody asks for them, which saves reading them."""
        rows = self.read_rows(*(np.array([number]) for number in (source, block, row)))
        return Row(rows.tokens[0], rows.ends[0], rows.targets[0])

    def read_rows(self, sources: Int64, blocks: Int64, rows: Int64) -> Rows:
        """Many rows, each int64 [N]: tokens uint16 or uint32 [N, sequence_length + 1], their ends and targets."""
        parts = [(here, self._read_from(source, blocks[here], rows[here])) for source, here in each(sources)]
        if len(parts) == 1:
            return parts[0][1]
        tokens = np.empty((len(sources), self.sequence_length + 1), dtype=np.result_type(*(p.tokens for _, p in parts)))
        ends: list[Int64] = [np.empty(0, dtype=np.int64)] * len(sources)
        targets: list[int | None] = [None] * len(sources)
        for here, part in parts:
            tokens[here] = part.tokens
            for at, row_ends, row_targets in zip(np.flatnonzero(here), part.ends, part.targets, strict=True):
                ends[at], targets[at] = row_ends, row_targets
        return Rows(tokens, ends, targets)

    @property
    def packed(self) -> bool:
        """Whether some source was packed by best fit, so that not every label has a target."""
        return any(data.manifest.recipe.packing for data in self.data)

    def targets(self, sources: Int64, blocks: Int64, rows: Int64) -> int:
        """Labels with a target in all of these rows."""
        total = 0
        for source, here in each(sources):
            targets = self.data[source].row_targets(blocks[here], rows[here])
            total += len(rows[here]) * self.sequence_length if targets is None else int(targets.sum())
        return total

    def close(self) -> None:
        for data in self.data:
            data.close()

    def _read_from(self, source: int, blocks: Int64, rows: Int64) -> Rows:
        return self.data[source].read_rows(blocks, rows, self.sequence_length, with_ends=self._with_ends)

    def _size(self, data: PreparedData) -> SourceSize:
        size = SourceSize(data.manifest.rows(self.sequence_length), data.manifest.rows_per_block(self.sequence_length))
        if size.rows == 0:
            raise DataError(
                f"{data.path}: holds {data.manifest.tokens:,} tokens, too few for one row of "
                f"data.sequence_length + 1 = {self.sequence_length + 1}. Give more text, or shorten the sequence."
            )
        return size
