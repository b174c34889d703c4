"""Examples of a fine-tuning as its model sees them: what is learnt, what was put around a text, what was cut."""

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import DataError
from megatrain.data.examples.added import own_text
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_set import ExampleSet
from megatrain.data.examples.packing import NO_LABEL, PackedRow
from megatrain.data.examples.prompt_completion import PairReader
from megatrain.data.text.inputs import find_inputs
from megatrain.data.text.pieces import Shown, pieces_of
from megatrain.data.text.prompts import EncodedPair, PromptEncoder
from megatrain.data.text.rows import Row, read_rows
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.tasks.registry import TaskSection
from megatrain.tasks.sft.section import SFTSection

ReadExamples = Callable[[Sequence[str]], ExampleSet]


def choose_rows(paths: Sequence[str], count: int, seed: int | None) -> list[Row]:
    """The first rows of some files, or as many drawn evenly from all of them, in their order.

    Raises:
        DataError: a file cannot be read, or there are no rows.
    """
    draw = None if seed is None else random.Random(seed)
    chosen: list[tuple[int, Row]] = []
    rows = (row for file in find_inputs(paths).inputs for row in read_rows(file))
    for number, row in enumerate(rows):
        if len(chosen) < count:
            chosen.append((number, row))
        elif draw is None:
            break
        elif (place := draw.randrange(number + 1)) < count:
            chosen[place] = number, row
    if not chosen:
        raise DataError(f"{', '.join(paths)}: holds no examples; write an object per line")
    return [row for _, row in sorted(chosen, key=lambda one: one[0])]


class Previewer:
    """Rows as the examples that they become.

    Args:
        read: the task's reader of files.
    """

    def __init__(
        self, read: ReadExamples, tokenizer: Tokenizer, section: TaskSection, template: ChatTemplate | None
    ) -> None:
        self._read = read
        self._tokenizer = tokenizer
        self._classes = section.classes
        self._reader = PairReader(section, template) if isinstance(section, SFTSection) else None
        special = section.special_tokens if isinstance(section, SFTSection) else "parse"
        self._encoder = PromptEncoder(tokenizer, special_tokens=special)

    def examples(self, rows: Sequence[Row]) -> Iterator[Shown]:
        """Each row alone, by the reader of the run."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "row.jsonl"
            for row in rows:
                file.write_text(json.dumps(row.fields, ensure_ascii=True, default=str) + "\n", encoding="utf-8")
                try:
                    found = self._read([str(file)])
                except DataError as error:
                    yield Shown(
                        row.where, (), (), 0, str(error).replace(f"{file}:1: ", "").replace(str(file), row.where)
                    )
                    continue
                note = "; ".join(found.warnings()).replace(f"{file}: ", "") or None
                cut = sum(report.prompt_tokens_cut for report in found.files)
                for packed in found.rows:
                    for begin, end in zip([0, *packed.ends[:-1]], packed.ends, strict=True):
                        yield self._shown(row, packed, int(begin), int(end), note, cut)

    def _shown(self, row: Row, packed: PackedRow, begin: int, end: int, note: str | None, cut: int) -> Shown:
        ids = packed.tokens[begin:end]
        learnt, labels = packed.is_target[begin:end], [None] * len(ids)
        if packed.labels is not None:
            numbers = packed.labels[begin:end].tolist()
            learnt = np.array([number != NO_LABEL for number in numbers])
            labels = [self._classes[number] if number != NO_LABEL else None for number in numbers]
        pieces = tuple(pieces_of(self._tokenizer, ids, learnt, self._added(row, ids, cut), labels))
        return Shown(row.where, pieces, tuple(ids.tolist()), int(learnt.sum()), note)

    def _added(self, row: Row, ids: NDArray[np.int64], cut: int) -> NDArray[np.bool_]:
        special = np.isin(ids, list(self._encoder.special_ids))
        if self._reader is None:
            return special
        pair = self._reader.pair(row.where, row.fields)
        own = own_text(self._reader, pair, row.fields)
        encoded = next(self._encoder.pairs([(pair.prompt, pair.response)]))
        if own is None or not isinstance(encoded, EncodedPair):
            return special
        holds = np.zeros(len(encoded.tokens), dtype=np.bool_)
        for first, last in own:
            holds |= (encoded.offsets[:, 1] > first) & (encoded.offsets[:, 0] < last)
        kept, added = encoded.tokens[cut:], np.ones(len(ids), dtype=np.bool_)
        for front in range(len(self._encoder.prefix) + 1):  # ids: perhaps a BOS, the text as far as it was kept, an end
            length = min(len(kept), len(ids) - front)
            if length and (ids[front] == kept[0]):
                same = int(np.argmin(np.append(ids[front : front + length] == kept[:length], False)))
                added[front : front + same] = ~holds[cut : cut + same]
                break
        return added
