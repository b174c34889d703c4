import pytest
import torch
import torch.distributed as dist

from megatrain.base.errors import ConfigError
from megatrain.monitor.collector import Collector
from megatrain.monitor.metric import METRICS, Metric
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    register()


def register() -> None:
    for name, metric in {
        "share": Metric(unit="1", tag=None, over_steps="mean", over_ranks="sum"),
        "peak": Metric(unit="1", tag=None, over_ranks="max"),
        "here": Metric(unit="1", tag=None, over_steps="mean"),
    }.items():
        METRICS.register(name, metric)


def collected() -> list[dict[str, float]]:
    """Two reports of a rank whose values depend on its number."""
    register()
    rank = dist.get_rank()
    collector = Collector(dist.group.WORLD)
    for step in range(2):
        collector.add(
            {"share": torch.tensor(float(rank + step)), "peak": torch.tensor(10.0 * rank + step), "here": step}
        )
    first = collector.collect()
    collector.add({"here": 5.0})
    return [first, collector.collect()]


def test_values_are_reduced_over_steps_and_ranks(ranks: RankPool) -> None:
    first, second = ranks.run(2, collected)[0]
    assert first == {"share": 0.5 + 1.5, "peak": 11.0, "here": 0.5}
    assert list(first) == ["share", "peak", "here"], "in the order in which they were added"
    assert second == {"here": 5.0}, "a report forgets what it told"


def test_a_name_that_nobody_registered_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"metric 'shere' is not known. Did you mean (share|here)\?"):
        Collector(None).add({"shere": 1.0})  # type: ignore[arg-type]
