"""`training.precision`: what `auto` takes, what a run that has started was given, and what fp8 changes in a plan."""

import json

import pytest

from launcher.deepspeed_config import deepspeed_config
from launcher.planning import processor
from launcher.planning.plan import NothingFitsError, make_plan, resolve
from launcher.preflight.precision import check_precision
from launcher.runs.prepare import prepare_run
from megatrain.base.errors import ConfigError


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


def test_fp8_is_planned_faster_and_no_smaller(tiny):
    sizes = ("model.hidden_size=4096", "model.intermediate_size=14336", "model.num_attention_heads=32")
    fixed = ("data.sequence_length=2048", "training.micro_batch_size=4", "parallel.activation_checkpointing=none")
    plans = {
        precision: make_plan(
            tiny(f"training.precision={precision}", "cluster.hardware=h100-sxm", *sizes, *fixed)
        ).chosen
        for precision in ("bf16", "fp8")
    }
    assert plans["fp8"].memory == plans["bf16"].memory
    assert 1.2 < plans["bf16"].time.compute / plans["fp8"].time.compute < 2
    assert plans["fp8"].time.optimizer == plans["bf16"].time.optimizer


def test_deepspeed_is_told_bf16_for_fp8(tiny):
    config = resolved(tiny("training.precision=fp8", "data.sequence_length=64"))
    assert deepspeed_config(config, 2) == deepspeed_config(
        config.model_copy(update={"training": config.training.model_copy(update={"precision": "bf16"})}), 2
    )
    assert deepspeed_config(config, 2)["bf16"] == {"enabled": True}


def test_shapes_that_fp8_does_not_take_are_refused(tiny):
    config = tiny("training.precision=fp8", "data.sequence_length=24", "training.micro_batch_size=1")
    with pytest.raises(NothingFitsError, match=r"24 tokens .* are no multiple of 16, as training.precision=fp8 asks"):
        make_plan(config)


def test_hardware_without_fp8_is_refused(tiny):
    config = tiny("training.precision=fp8", "cluster.hardware=a100-80gb")
    with pytest.raises(ConfigError, match=r"precision: fp8: a100-80gb does not multiply in fp8\. Try bf16\."):
        make_plan(config)


def fp8_findings(config):
    return [(finding.level, finding.text) for finding in check_precision(config)]


def test_what_else_fp8_needs_is_said(tiny, monkeypatch):
    assert fp8_findings(tiny("cluster.hardware=a100-80gb")) == []
    assert fp8_findings(tiny("training.precision=fp8", "cluster.hardware=h100-sxm")) == []
    (found,) = fp8_findings(tiny("training.precision=fp8"))
    assert found[0] == "warning"
    assert "emulated on a CPU" in found[1]
    monkeypatch.setattr("launcher.preflight.precision.find_spec", lambda name: None)
    (found,) = fp8_findings(tiny("training.precision=fp8", "cluster.hardware=h100-sxm"))
    assert found[0] == "error"
    assert "pip install 'megatrain[fp8]'" in found[1]
