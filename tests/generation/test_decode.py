"""When sequences end, and what may be drawn for them, whatever the model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatrain.generation.decode import continued
from megatrain.generation.ranks import Alone
from megatrain.generation.sampling import Sampling

VOCABULARY, PADDED, EOS = 20, 32, 7


class Counting:
    """Wants the token after the last one it was given; padded rows above all. Remembers what it was fed."""

    def __init__(self) -> None:
        self.fed: list[list[list[int]]] = []
        self._last: list[int] = []

    def __call__(self, new: Sequence[Sequence[int]]) -> Tensor:
        self.fed.append([list(tokens) for tokens in new])
        self._last = [
            tokens[-1] if tokens else old for tokens, old in zip(new, self._last or [0] * len(new), strict=True)
        ]
        rows = torch.full((len(new), PADDED), -50.0)
        rows[:, VOCABULARY:] = 1e4
        for row, last in zip(rows, self._last, strict=True):
            row[(last + 1) % VOCABULARY] = 5.0
        return rows


def run(model: Counting, prompts: list[list[int]], **options) -> list[list[int]]:
    settings = {"max_new_tokens": 6, "ends": lambda made: made[-1] == EOS, "vocab_size": VOCABULARY}
    return continued(model, prompts, Sampling(**options.pop("sampling", {})), **(settings | options))


def test_each_ends_by_itself_and_is_fed_no_more() -> None:
    model = Counting()
    assert run(model, [[1, 5], [9], [6]]) == [[6, 7], [10, 11, 12, 13, 14, 15], [7]]
    assert model.fed[0] == [[1, 5], [9], [6]]
    assert model.fed[1:3] == [[[6], [10], []], [[], [11], []]]
    assert len(model.fed) == 6


def test_no_more_than_asked_for() -> None:
    assert run(Counting(), [[1]], max_new_tokens=3) == [[2, 3, 4]]
    model = Counting()
    assert run(model, [[1]], max_new_tokens=0) == [[]]
    assert model.fed == []


def test_no_more_than_the_model_can_read() -> None:
    assert run(Counting(), [[8, 9, 10], [11]], longest=5) == [[11, 12], [12, 13, 14, 15]]


def test_a_padded_id_is_never_drawn() -> None:
    for temperature in (0.0, 0.1, 100.0):
        made = run(
            Counting(), [[1]], max_new_tokens=200, sampling={"temperature": temperature}, ends=lambda made: False
        )
        assert all(token < VOCABULARY for token in made[0])


def test_draws_do_not_depend_on_what_is_beside() -> None:
    options = {"sampling": {"temperature": 50.0}, "ends": lambda made: False}
    together = run(Counting(), [[1], [2, 3], [4]], seeds=[5, 6, 7], **options)
    assert run(Counting(), [[2, 3]], seeds=[6], **options) == [together[1]]
    assert run(Counting(), [[2, 3]], seeds=[7], **options) != [together[1]]


def test_the_prompt_counts_for_the_repetition_penalty() -> None:
    """3 follows 2, and was there before."""
    made = run(Counting(), [[3, 2]], max_new_tokens=1, sampling={"repetition_penalty": 1e3})
    assert made == [[3]], "5 / 1000 is still above -50"
    flat = lambda new: torch.tensor([[1.0, 1.1, 1.2, 1.3]])  # noqa: E731
    made = continued(
        flat, [[3]], Sampling(repetition_penalty=1.2), max_new_tokens=3, ends=lambda made: False, vocab_size=4
    )
    assert made == [[2, 1, 3]]


def test_a_rank_goes_on_until_all_others_have_ended() -> None:
    """Where a forward pass needs them all: it feeds nothing, and keeps what it has."""

    class Others(Alone):
        def __init__(self) -> None:
            self.asked = 0

        def any(self, flag: bool) -> bool:
            self.asked += 1
            return self.asked <= 5

    model = Counting()
    assert run(model, [[6]], ranks=Others()) == [[7]]
    assert model.fed == [[[6]]] + [[[]]] * 4
