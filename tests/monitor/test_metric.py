import pytest

from megatrain.base.errors import ConfigError
from megatrain.base.formatting import quantity
from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks import causal_lm  # noqa: F401 - registers metrics, as does:
from megatrain.train import report  # noqa: F401


def test_a_console_text_names_the_device() -> None:
    metric = Metric(unit="tokens/s", tag=None, format=quantity, console="{value}/{device}")
    assert (metric.text(30_000, "GPU"), metric.text(30_000, "rank")) == ("30.0k/GPU", "30.0k/rank")
    assert Metric(unit="1", tag=None).text(1.0, "GPU") is None


@pytest.mark.parametrize(
    "name", ["loss", "grad_norm", "learning_rate", "tokens", "mfu", "memory_bytes", "validation_loss"]
)
def test_built_in_metrics_say_their_unit(name: str) -> None:
    assert METRICS.get(name).unit


def test_tags_are_of_one_metric_each() -> None:
    tags = [metric.tag for _, metric in METRICS if metric.tag is not None]
    assert len(tags) == len(set(tags))


def test_metrics_of_a_named_set() -> None:
    of_set = METRICS.get("web/validation_loss")
    assert (of_set.tag, of_set.console) == ("validation/web/loss", METRICS.get("validation_loss").console)
    assert METRICS.split("web/validation_loss") == ("web", "validation_loss")
    METRICS.register("f1/validation_loss", Metric(unit="of a class", tag="validation_f1/validation_loss"))
    assert METRICS.split("f1/validation_loss") == ("", "f1/validation_loss"), "a registered name comes first"
    assert METRICS.get("web/f1/validation_loss").tag == "validation/web/f1/validation_loss"
    with pytest.raises(ConfigError, match="web/nothing"):
        METRICS.get("web/nothing")
