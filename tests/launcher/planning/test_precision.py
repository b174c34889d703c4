"""`training.precision: auto`: what the hardware multiplies fastest, and what a run that has started was given."""

import json

import pytest

from launcher.planning import processor
from launcher.planning.plan import make_plan, resolve
from launcher.runs.prepare import prepare_run


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """measured(bf16, fp32): the rates of this machine's cores."""
    monkeypatch.setenv(processor.CACHE_VARIABLE, str(tmp_path / "cache"))

    def remember(bf16, fp32):
        processor.rates.cache_clear()
        file = processor.remembered_file()
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"bf16": bf16, "fp32": fp32}), encoding="utf-8")

    yield remember
    processor.rates.cache_clear()


def resolved(config):
    return resolve(config, make_plan(config).chosen)


@pytest.mark.parametrize(("rates", "expected"), [((435e9, 94e9), "bf16"), ((75e9, 115e9), "fp32")])
def test_a_cpu_run_takes_what_is_faster_here(tiny, measured, rates, expected):
    measured(*rates)
    assert resolved(tiny("training.precision=auto")).training.precision == expected


def test_a_gpu_run_takes_bf16_whatever_this_machine_is(tiny, measured):
    measured(75e9, 115e9)
    config = tiny("training.precision=auto", "cluster.hardware=h100-sxm")
    assert resolved(config).training.precision == "bf16"


def test_what_is_given_is_kept(tiny, measured):
    measured(75e9, 115e9)
    assert resolved(tiny("training.precision=bf16")).training.precision == "bf16"


def test_a_run_that_has_started_keeps_its_precision(tiny, measured, here):
    measured(435e9, 94e9)
    config = tiny("training.precision=auto")
    prepare_run(config, make_plan(config).chosen)
    measured(75e9, 115e9)
    assert resolved(config).training.precision == "bf16"
