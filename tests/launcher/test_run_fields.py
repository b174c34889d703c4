"""Every field of a configuration is fixed or free in a run that has started, and the table says why."""

from typing import get_args

import pytest
from pydantic import BaseModel

from launcher.run_fields import FIELDS, differences, meaning
from megatrain.config import FinetuneConfig, PretrainConfig


def sections(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of all fields, and of the sections they lie in."""
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += sections(kind, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("config", [PretrainConfig, FinetuneConfig])
def test_every_field_has_a_meaning(config) -> None:
    assert {meaning(name) for name in sections(config)} == {"FIXED", "SAID", "UNSAID"}


def test_the_table_names_fields_that_there_are() -> None:
    assert FIELDS.keys() <= {*sections(PretrainConfig), *sections(FinetuneConfig)}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("model.hidden_size", "FIXED"),
        ("data.sequence_length", "FIXED"),
        ("data.attend_across_documents", "FIXED"),
        ("data.shuffle.lanes", "FIXED"),
        ("data.maximum_epochs", "SAID"),
        ("data.allow_pipe", "SAID"),
        ("data.reading.threads", "UNSAID"),
        ("finetune.sequence_length", "FIXED"),
        ("optimizer.betas", "SAID"),
        ("optimizer.name", "FIXED"),
        ("run.seed", "FIXED"),
        ("run.directory", "UNSAID"),
        ("training.global_batch_size", "SAID"),
    ],
)
def test_meanings(field, expected) -> None:
    assert meaning(field) == expected


def test_what_differs(tiny) -> None:
    assert differences(tiny(), tiny()) == {}
    changed = differences(tiny(), tiny("training.steps=null", "training.tokens=99", "data.train.0.weight=2"))
    assert changed.keys() == {"training.steps", "training.tokens", "data.train"}
    assert changed["training.tokens"] == (None, 99)
