import pytest

from megatrain.evaluation.calibration import calibration, expected_error


def test_bins_and_their_error_by_hand() -> None:
    found = calibration([0.95, 1.0, 0.55, 0.6], [True, False, True, True])
    assert [(one.low, one.high, one.answers) for one in found] == [(0.5, 0.6, 2), (0.9, 1.0, 2)]
    assert [one.accuracy for one in found] == [1.0, 0.5]
    assert expected_error(found) == pytest.approx((2 * (1.0 - 0.575) + 2 * (0.975 - 0.5)) / 4)


def test_who_is_always_as_right_as_sure_has_none() -> None:
    assert expected_error(calibration([0.75] * 4, [True, True, True, False])) == 0.0
    assert expected_error([]) == 0.0
