"""Entities of tagged words, counted as seqeval does."""

import pytest

from megatrain.tasks.token_classification.entities import entities


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        # seqeval's README: one of two entities is right
        ("O O O B-MISC I-MISC I-MISC O", {(3, 5, "MISC")}),
        ("O O B-MISC I-MISC I-MISC I-MISC O", {(2, 5, "MISC")}),
        ("B-PER I-PER O", {(0, 1, "PER")}),
        ("B-PER B-PER I-PER", {(0, 0, "PER"), (1, 2, "PER")}),
        ("I-PER O I-LOC I-LOC", {(0, 0, "PER"), (2, 3, "LOC")}),
        ("B-PER I-LOC", {(0, 0, "PER"), (1, 1, "LOC")}),
        ("B-PER I-PER E-PER S-LOC O", {(0, 2, "PER"), (3, 3, "LOC")}),
        ("B-A-B I-A-B", {(0, 1, "A-B")}),
        ("B I O", {(0, 1, "_")}),
        ("O O", set()),
    ],
)
def test_one_text(tags, found) -> None:
    words = tags.split()
    assert entities(words, [0] * len(words)) == found


def test_none_is_over_two_texts() -> None:
    assert entities(["B-PER", "I-PER", "I-PER"], [0, 0, 1]) == {(0, 1, "PER"), (2, 2, "PER")}
    assert entities([], []) == set()
