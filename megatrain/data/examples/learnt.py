"""Which tokens of a rendered dialogue are learnt."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from megatrain.data.examples.assistant_turns import Span


def learnt_tokens(
    tokens: NDArray[np.int32],
    offsets: NDArray[np.int64],
    text: str,
    spans: Sequence[Span],
    *,
    ends: Collection[int] | None,
) -> NDArray[np.bool_]:
    """bool [n]: the tokens that hold a character of a span.

    Args:
        tokens: [n].
        offsets: [n, 2], the characters of each token: the first, and behind the last.
        spans: what is learnt of the text.
        ends: ids that end a turn: of a span, blanks behind the last of them are the template's, and are not learnt.
            None: spans are taken as they are.
    """
    learnt = np.zeros(len(tokens), dtype=np.bool_)
    for begin, end in spans:
        inside = np.flatnonzero((offsets[:, 1] > begin) & (offsets[:, 0] < end))
        if ends is not None:
            closing = [place for place, number in enumerate(tokens[inside].tolist()) if number in ends]
            if closing and not text[offsets[inside[closing[-1]], 1] : end].strip():
                inside = inside[: closing[-1] + 1]
        learnt[inside] = True
    return learnt
