"""Shapes of a decay, as in arXiv 2405.18392, which found 1−√ the best of them."""

import math
from collections.abc import Callable
from typing import Literal

Decay = Literal["linear", "cosine", "sqrt"]

# part of the decay that is done, 0 to 1 -> part of the way to the minimum that is left
REMAINING: dict[Decay, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "sqrt": lambda done: 1.0 - math.sqrt(done),
}
