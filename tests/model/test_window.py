import pytest

from megatrain.model.window import BIDIRECTIONAL, CAUSAL, causal_window, effective, positions_seen


@pytest.mark.parametrize(("window", "expected"), [(CAUSAL, 50.0), (BIDIRECTIONAL, 100.0), ((9, 0), 9 - 81 / 200)])
def test_positions_seen(window, expected) -> None:
    assert positions_seen(window, 100) == pytest.approx(expected)


@pytest.mark.parametrize("window", [CAUSAL, BIDIRECTIONAL, (9, 0), (9, 9), (200, 0)])
def test_positions_seen_is_the_mean_of_a_count(window) -> None:
    size = 100
    left, right = (size if side < 0 else side for side in window)
    seen = [min(at, left) + min(size - 1 - at, right) for at in range(size)]
    assert positions_seen(window, size) == pytest.approx(sum(seen) / size, abs=1.0)


def test_a_window_as_long_as_the_sequence_hides_nothing() -> None:
    assert effective(causal_window(12), 12) == CAUSAL
    assert effective(causal_window(11), 12) == (10, 0)
    assert effective((11, 50), 12) == BIDIRECTIONAL
