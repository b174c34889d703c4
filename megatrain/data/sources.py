"""The prepared folders of a run, opened and checked together."""

from collections.abc import Sequence

import numpy as np

from megatrain.config import Source
from megatrain.data.batch import Row
from megatrain.data.order import Samples, SourceSize
from megatrain.data.shards import PreparedData
from megatrain.errors import DataError


class OpenSources:
    """Reads rows of `sequence_length` from several prepared folders.

    Raises:
        DataError: a folder is missing or damaged, was made with another tokenizer than the first, does not go with the
            sequence length, or is shorter than one row.
    """

    def __init__(self, sources: Sequence[Source], sequence_length: int, *, with_ends: bool) -> None:
        self.sequence_length = sequence_length
        self._with_ends = with_ends
        self.data = [PreparedData(source.path) for source in sources]
        self.sizes = [self._size(data) for data in self.data]
        for data in self.data[1:]:
            if data.manifest.tokenizer_sha256 != self.data[0].manifest.tokenizer_sha256:
                raise DataError(
                    f"{data.path}: was made with another tokenizer than {self.data[0].path}. Prepare it again."
                )

    def read(self, source: int, block: int, row: int) -> Row:
        """One row; without document ends where nobody asks for them, which saves reading them."""
        data = self.data[source]
        tokens = data.read_tokens(block, row, self.sequence_length)
        targets = data.row_targets(np.int64(block), np.int64(row))
        wanted = self._with_ends or targets is not None
        ends = data.row_ends(block, row, self.sequence_length) if wanted else np.empty(0, dtype=np.int64)
        return Row(tokens, ends, None if targets is None else int(targets))

    def targets(self, samples: Samples) -> int:
        """Labels with a target in all of these rows."""
        total = 0
        for source, data in enumerate(self.data):
            here = samples.source == source
            targets = data.row_targets(samples.block[here], samples.row[here])
            total += int(here.sum()) * self.sequence_length if targets is None else int(targets.sum())
        return total

    def close(self) -> None:
        for data in self.data:
            data.close()

    def _size(self, data: PreparedData) -> SourceSize:
        size = SourceSize(data.manifest.rows(self.sequence_length), data.manifest.rows_per_block(self.sequence_length))
        if size.rows == 0:
            raise DataError(
                f"{data.path}: holds {data.manifest.tokens:,} tokens, too few for one row of "
                f"data.sequence_length + 1 = {self.sequence_length + 1}. Give more text, or shorten the sequence."
            )
        return size
