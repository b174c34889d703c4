"""Spans of packed windows: their loss, the likeliest of each, and what answers are worth by SQuAD's definitions."""

import pytest
import torch
import torch.nn.functional as F

from megatrain.data.loading.batch import IGNORE_INDEX, Batch
from megatrain.tasks.question_answering.spans import best_spans, span_loss, windows_of
from megatrain.tasks.question_answering.squad import exact_match, f1, normalized

S = 12
# number, start, end, context, behind, length: two windows share the first row, a third has the second
VALUES = torch.tensor([[7, 3, 3, 2, 5, 5], [8, 0, 0, 1, 6, 6], [9, 2, 4, 1, 9, 10]], dtype=torch.float32)
BEGINS = (0, 5, S)


def batch() -> Batch:
    labels = torch.full((2 * S,), IGNORE_INDEX)
    labels[list(BEGINS)] = torch.arange(3)
    labels = labels.view(2, S)
    ids = torch.zeros(2, S, dtype=torch.long)
    return Batch(ids, labels, ids, whole_labels=labels, example_targets=VALUES)


def logits() -> torch.Tensor:
    return torch.randn(2, S, 2, generator=torch.Generator().manual_seed(0))


def parts() -> list[torch.Tensor]:
    flat = logits().flatten(0, 1)
    return [flat[begin : begin + int(values[5])] for begin, values in zip(BEGINS, VALUES, strict=True)]


def test_the_loss_is_that_of_each_window_alone() -> None:
    expected = sum(
        (F.cross_entropy(part[:, 0], values[1].long()) + F.cross_entropy(part[:, 1], values[2].long())) / 2
        for part, values in zip(parts(), VALUES, strict=True)
    )
    torch.testing.assert_close(span_loss(windows_of(logits(), batch())), expected)


def test_ranks_of_a_sequence_count_each_window_once() -> None:
    whole = batch()
    losses = []
    for first in (0, S // 2):  # the second window begins in the first half, the third too
        part = Batch(
            whole.input_ids[:, first : first + S // 2],
            whole.labels[:, first : first + S // 2],
            whole.position_ids[:, first : first + S // 2],
            whole_labels=whole.labels,
            example_targets=VALUES,
        )
        windows = windows_of(logits(), part)
        losses.append(span_loss(windows))
        assert best_spans(windows, 3)[:, 0].tolist() == ([7, 8, 9] if first == 0 else [])
    torch.testing.assert_close(sum(losses), span_loss(windows_of(logits(), whole)))
    assert losses[1] == 0.0


@pytest.mark.parametrize("longest", [1, 3, 100])
def test_the_likeliest_span_is_that_of_all_of_them(longest) -> None:
    found = best_spans(windows_of(logits(), batch()), longest)
    for row, part, values in zip(found.tolist(), parts(), VALUES.long(), strict=True):
        spans = {
            (first, last): float(part[first, 0] + part[last, 1])
            for first in range(values[3], values[4])
            for last in range(first, min(first + longest, int(values[4])))
        }
        (first, last), score = max(spans.items(), key=lambda item: item[1])
        assert row == [float(values[0]), first, last, pytest.approx(score), pytest.approx(float(part[0].sum()))]


def test_answers_are_compared_as_squad_does() -> None:
    assert normalized("The  Cat, an  owl!") == "cat owl"
    assert exact_match("the 42nd.", ["forty", "42nd"]) == 1.0
    assert exact_match("", []) == 1.0
    assert exact_match("x", []) == 0.0
    assert f1("in the big city", ["big city", "a town"], unanswerable=False) == pytest.approx(2 * 2 / (3 + 2))
    assert f1("the", ["the"], unanswerable=False) == 0.0, "as evaluate-v1.1.py: no word is left"
    assert f1("the", ["the"], unanswerable=True) == 1.0
    assert f1("", [], unanswerable=True) == 1.0
    assert f1("x", [], unanswerable=True) == 0.0
