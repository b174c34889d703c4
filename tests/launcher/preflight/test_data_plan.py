import json

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.planning.plan import make_plan
from launcher.preflight.checks import check
from launcher.preflight.data_plan import plan_data
from megatrain.base.errors import DataError, ExitCode
from megatrain.data.ordering.mixture import quotas
from tests.launcher.conftest import TINY, write_data


@pytest.fixture
def two(here):
    write_data(here / "data/train", tokens=128 * 1000 + 1)
    write_data(here / "data/other", tokens=128 * 10 + 1)
    return ("data.train=[{path: data/train, weight: 3}, {path: data/other}]",)


def test_tokens_and_epochs_of_each_source(tiny, two):
    """1,024 steps of 8 are two whole mix blocks: the quotas are exact."""
    plan = plan_data(tiny(*two, "training.steps=1024"))
    wanted = [2 * quota for quota in quotas([3, 1])]
    assert [total.samples for total in plan.totals] == wanted
    assert [total.tokens for total in plan.totals] == [128 * samples for samples in wanted]
    assert [total.epochs for total in plan.totals] == [wanted[0] / 1000, wanted[1] / 10]


def test_counts_are_those_of_the_order_itself(tiny, two):
    """Not a share of the run: what the loader will really read."""
    from megatrain.data.ordering.order import Order, Phase, SourceSize

    config = tiny(*two, "training.steps=77")
    order = Order([SourceSize(1000, 32), SourceSize(10, 32)], [Phase(0, quotas([3, 1]))], config.run.seed)
    assert [total.samples for total in plan_data(config).totals] == order.counts(77 * 8).tolist()


def test_each_stage_of_a_curriculum(tiny, two):
    """The weights change after four mix blocks; a phase that the run never reaches is not shown."""
    phases = "data.phases=[{from_sample: 16384, weights: [1, 0]}, {from_sample: 99999999, weights: [0, 1]}]"
    plan = plan_data(tiny(*two, phases, "training.steps=2560", "data.max_epochs=1000"))
    wanted = [4 * quota for quota in quotas([3, 1])]
    assert [(part.phase, part.first_sample, part.samples) for part in plan.parts] == [
        (0, 0, wanted[0]),
        (0, 0, wanted[1]),
        (1, 16384, 20480 - 16384),
        (1, 16384, 0),
    ]
    assert [total.samples for total in plan.totals] == [wanted[0] + 4096, wanted[1]]


def test_more_repetition_than_permitted_is_refused(tiny, two):
    config = tiny(*two, "training.steps=100")  # about 200 samples of 10 rows
    (text,) = plan_data(config).refusals()
    assert text.startswith("data.train.1: data/other: the run reads it 21")
    assert "more than data.max_epochs (16)" in text
    assert list(plan_data(tiny(*two, "training.steps=100", "data.max_epochs=30")).refusals()) == []


def test_preflight_refuses_it_before_a_gpu_starts(tiny, two):
    config = tiny(*two, "training.steps=100")
    (found,) = check(config, make_plan(config).chosen)
    assert (found.level, found.code) == ("error", ExitCode.DATA)
    assert "data.max_epochs" in found.text


def invoke(*arguments):
    result = CliRunner().invoke(app, ["data", "plan", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_the_verb(here, two):
    (here / "tiny.yaml").write_text(TINY)
    value = json.loads(invoke("tiny.yaml", *two, "--json"))
    assert value["tokens"] == 20 * 8 * 128
    assert [source["path"] for source in value["sources"]] == ["data/train", "data/other"]
    lines = invoke("tiny.yaml", *two).splitlines()
    assert lines[0].split() == ["phase", "from", "sample", "source", "samples", "tokens", "epochs"]
    assert [line.split()[0] for line in lines[1:]] == ["0", "0", "all", "all"]
    with pytest.raises(DataError, match=r"data\.train\.1: data/other: the run reads it") as error:
        invoke("tiny.yaml", *two, "training.steps=100")
    assert error.value.exit_code == 4


def test_a_source_that_is_not_there(tiny, here):
    with pytest.raises(DataError, match="data/train: is not a prepared folder"):
        plan_data(tiny())
