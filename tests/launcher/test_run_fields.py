"""What a resume may change is said by each field, or by a section around it."""

import pytest
from pydantic import BaseModel

from launcher.run_fields import differences, resume_rule
from megatrain.base.section import FIXED, FREE, REPORTED, Resume
from megatrain.config.file import parse_config

FINETUNE = "{run: {name: x}, finetune: {base: b, train: [a]}, training: {steps: 1, global_batch_size: 1}}"


def fields(section: BaseModel, prefix: str = "") -> list[str]:
    """The dotted names of all fields, and of the sections they lie in."""
    found = []
    for name in type(section).model_fields:
        found.append(prefix + name)
        below = getattr(section, name)
        if isinstance(below, BaseModel):
            found += fields(below, f"{prefix}{name}.")
    return found


def test_every_field_has_a_rule(tiny) -> None:
    for config in (tiny(), parse_config(FINETUNE)):
        assert {resume_rule(config, name) for name in fields(config)} == set(Resume)
    with pytest.raises(KeyError):
        resume_rule(tiny(), "nothing")


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("model.hidden_size", FIXED),
        ("data.sequence_length", FIXED),
        ("data.attend_across_documents", FIXED),
        ("data.shuffle.streams", FIXED),
        ("data.max_epochs", REPORTED),
        ("data.phases", FREE),
        ("data.allow_pipe", REPORTED),
        ("data.reading.threads", FREE),
        ("optimizer.betas", REPORTED),
        ("optimizer.name", FIXED),
        ("schedule.min_lr_ratio", REPORTED),
        ("run.seed", FIXED),
        ("run.directory", FREE),
        ("training.global_batch_size", REPORTED),
        ("training.micro_batch_size", FREE),
    ],
)
def test_rules(tiny, field, expected) -> None:
    assert resume_rule(tiny(), field) is expected


def test_rules_of_a_finetuning() -> None:
    config = parse_config(FINETUNE)
    assert resume_rule(config, "finetune.sequence_length") is FIXED
    assert resume_rule(config, "finetune.train") is FREE


def test_a_field_that_only_the_other_schedule_has(tiny) -> None:
    """It has the rule of its section."""
    assert resume_rule(tiny("schedule.name=constant"), "schedule.min_lr_ratio") is REPORTED


def test_what_differs(tiny) -> None:
    assert differences(tiny(), tiny()) == {}
    changed = differences(tiny(), tiny("training.steps=null", "training.tokens=99", "data.train.0.weight=2"))
    assert changed.keys() == {"training.steps", "training.tokens", "data.train"}
    assert changed["training.tokens"] == (None, 99)
