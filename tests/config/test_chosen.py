"""Sections whose class is chosen by a name, built in or registered by an extension."""

import sys

import pytest

from megatrain.base.errors import ConfigError
from megatrain.config.file import dump_config, parse_config
from megatrain.model.families.llama.section import LlamaSection
from megatrain.optim.adamw import AdamWSection
from megatrain.optim.registry import OPTIMIZERS
from megatrain.schedule.constant import ConstantSection
from tests.config.test_sections import MODEL

RUN = f"""
run: {{name: x}}
model: {MODEL}
data: {{sequence_length: 8, train: [{{path: a}}]}}
training: {{steps: 1, global_batch_size: 1}}
"""
EXTENSION = """
from typing import Literal
from megatrain.optim.registry import OPTIMIZERS, OptimizerSection, OptimizerSpec

class ToySection(OptimizerSection):
    name: Literal["toy"] = "toy"
    momentum: float = 0.5

OPTIMIZERS.register("toy", OptimizerSpec(section=ToySection, optimizer="a:b", arguments=dict, state=("momentum",)))
"""


@pytest.fixture
def extension(tmp_path, monkeypatch):
    (tmp_path / "toy_extension.py").write_text(EXTENSION, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(OPTIMIZERS, "_entries", dict(OPTIMIZERS._entries))
    yield "toy_extension"
    sys.modules.pop("toy_extension", None)


def test_the_default_and_the_named_ones() -> None:
    config = parse_config(RUN)
    assert (type(config.model), type(config.optimizer)) == (LlamaSection, AdamWSection)
    constant = parse_config(RUN, overrides=["schedule.name=constant", "schedule.warmup_steps=1"])
    assert constant.schedule == ConstantSection(warmup_steps=1)
    assert parse_config(dump_config(constant)) == constant


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.name=adamv",
            r"optimizer.name: 'adamv': must be adafactor or adamw or adamw_l2sp or lion or muon. Did you mean adamw\?",
        ),
        (
            "schedule.name=3",
            "schedule.name: 3: must be constant or cooldown or cosine or inverse_sqrt or linear or wsd",
        ),
        ("model.family=lama", r"model.family: 'lama': must be .*llama.*. Did you mean llama\?"),
        ("optimizer.beta=1", r"optimizer.beta: 1: unknown key. Did you mean betas\?"),
        ("schedule.min_lr=1", r"schedule.min_lr: 1: unknown key. Did you mean min_lr_ratio\?"),
        ("optimizer.eps=-1", "optimizer.eps: -1: must be greater than 0"),
    ],
)
def test_mistakes_name_what_there_is(override, message) -> None:
    with pytest.raises(ConfigError, match=f"command line: {message}"):
        parse_config(RUN, overrides=[override])


def test_an_extension_registers_what_a_run_uses(extension) -> None:
    overrides = [f"extensions=[{extension}]", "optimizer.name=toy", "optimizer.momentum=0.25"]
    config = parse_config(RUN, overrides=overrides)
    assert (config.optimizer.name, config.optimizer.momentum) == ("toy", 0.25)
    assert parse_config(dump_config(config)) == config
    with pytest.raises(ConfigError, match=r"unknown key. Did you mean momentum\?"):
        parse_config(RUN, overrides=[*overrides, "optimizer.momentun=1"])


def test_an_extension_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"line: extensions.0: nowhere.ext: cannot be imported: No module named"):
        parse_config(RUN, overrides=["extensions=[nowhere.ext]"])
    with pytest.raises(ConfigError, match=r"extensions.0: 'a b': must be"):
        parse_config(RUN, overrides=["extensions=['a b']"])
