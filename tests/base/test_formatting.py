import pytest

from megatrain.base.formatting import duration, gib, percent, quantity, scientific


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (8, "8"), (0.5, "0.5"), (12.34, "12.3"), (999, "999"), (999.6, "1.00k"), (1_000, "1.00k"),
        (30_000, "30.0k"), (9_996, "10.0k"), (999_960, "1.00M"), (1_920_000, "1.92M"), (124_800_000, "124.8M"),
        (2.5e9, "2.50B"), (1.5e13, "15.0T"),
    ],
)  # fmt: skip
def test_quantities(value, text):
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (192, "3m12s"), (3_600, "1h00m"), (3_875, "1h04m"), (183_600, "2d03h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(5.9e-4, "5.9e-4"), (0.0, "0"), (3e-11, "3.0e-11"), (1.0, "1.0e0")])
def test_learning_rates(value, text):
    assert scientific(value) == text


def test_sizes():
    assert gib(14.6 * 2**30) == "14.6 GiB"
    assert gib(300 * 2**20) == "300 MiB"


def test_percentages():
    assert percent(0.413) == "41.3%"
