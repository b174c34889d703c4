"""What a tokenizer puts around the texts of an example: [CLS] a [SEP] b [SEP]."""

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers

from megatrain.data.text.tokenizer import guarded

_PROBES = ("a", "0", "the", ".")  # one of them has a token in any vocabulary


@dataclass(frozen=True, slots=True)
class Frame:
    """Ids in front of the first text, between it and the second, and behind; and the token types of all parts.

    Attributes:
        types: of what stands in front, of the first text, of each id between, of the second text, of each id behind.
    """

    front: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    types: tuple[tuple[int, ...], int, tuple[int, ...], int, tuple[int, ...]] = ((), 0, (), 0, ())

    @property
    def ids(self) -> int:
        """How many it adds."""
        return len(self.front) + len(self.between) + len(self.behind)

    def around(self, texts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
        """Ids and token types of an example of one text, or of two."""
        second = texts[1] if len(texts) > 1 else ()
        front, of_first, between, of_second, behind = self.types
        ids = [*self.front, *texts[0], *self.between, *second, *self.behind]
        return ids, [*front, *[of_first] * len(texts[0]), *between, *[of_second] * len(second), *behind]


def frame_of(library: tokenizers.Tokenizer, texts: int, name: str) -> Frame:
    """
    Args:
        library: with its post-processor.
        texts: of an example: 1 or 2.
        name: of the tokenizer, in messages.
    """
    for probe in _PROBES:
        given = probe if texts == 1 else (probe, probe)
        encoding = guarded(lambda _, given=given: library.encode_batch([given]), [probe], name)[0]  # type: ignore[misc]
        places = list(encoding.sequence_ids)
        if not {*range(texts)} <= set(places):
            continue
        first, last = _part(places, 0), _part(places, texts - 1)
        ids, types = encoding.ids, encoding.type_ids
        front, between, behind = (
            slice(0, first.start),
            slice(first.stop, max(first.stop, last.start)),
            slice(last.stop, None),
        )
        return Frame(
            tuple(ids[front]),
            tuple(ids[between]),
            tuple(ids[behind]),
            (tuple(types[front]), types[first.start], tuple(types[between]), types[last.start], tuple(types[behind])),
        )
    return Frame()


def _part(places: Sequence[int | None], text: int) -> slice:
    """Where the tokens of a text are."""
    found = [place for place, of in enumerate(places) if of == text]
    return slice(found[0], found[-1] + 1)
