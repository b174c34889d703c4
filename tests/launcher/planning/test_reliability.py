"""Young's interval, and what is lost at it."""

import math

import pytest

from launcher.planning.reliability import RESTART_SECONDS, reliability
from megatrain.config import ClusterSection
from megatrain.optim.adamw import AdamWSection
from tests.launcher.shapes import MODEL


def of(nodes=1, hours=1000.0, gbps=1.0):
    return reliability(MODEL, AdamWSection(), ClusterSection(node_mtbf_hours=hours, storage_gbps=gbps), nodes)


def test_youngs_interval():
    found = of(nodes=10)
    assert found.mtbf_seconds == 1000 * 3600 / 10
    assert found.checkpoint_seconds == pytest.approx(12 * MODEL.parameters / 1e10)
    assert found.interval_seconds == pytest.approx(math.sqrt(2 * found.checkpoint_seconds * found.mtbf_seconds))


def test_no_other_interval_loses_less():
    found = of(nodes=10)

    def lost(interval):
        saving, failing = found.checkpoint_seconds / interval, interval / (2 * found.mtbf_seconds)
        return saving + failing + RESTART_SECONDS / found.mtbf_seconds

    assert found.lost == pytest.approx(lost(found.interval_seconds))
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert lost(factor * found.interval_seconds) > found.lost


def test_what_makes_it_better_and_worse():
    assert of(nodes=100).lost > of(nodes=10).lost
    assert of(hours=10_000).lost < of().lost
    assert of(gbps=10).interval_seconds < of().interval_seconds
    assert of(nodes=10**6, hours=0.001).goodput == pytest.approx(0.01), "never less than nothing"
