"""Rules of dropout, and what it adds to the passes."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from megatrain.adapters.lora import LoraSection
from megatrain.config import FinetuneConfig
from megatrain.config.regularization import Passes, passes_of, regularization_issues
from megatrain.config.rules import validate
from megatrain.model.family import FAMILIES
from megatrain.optim.adamw_l2sp import AdamWL2SPSection
from tests.config.test_sections import MODEL, pretrain


def test_a_family_that_does_not_say_where_dropout_stands_is_refused(monkeypatch) -> None:
    config = pretrain(training={"steps": 10, "global_batch_size": 8, "dropout": 0.1})
    assert list(validate(config)) == []
    assert passes_of(config) == Passes(dropout=True)
    monkeypatch.setitem(FAMILIES._entries, "llama", replace(FAMILIES.get("llama"), residual=()))
    (problem,) = validate(config)
    assert (problem.field, problem.value) == ("training.dropout", 0.1)
    assert "llama does not say" in problem.rule


def finetune(task: str = "sequence_classification", training: Mapping[str, Any] = MappingProxyType({}), **fields: Any):
    given = {
        "run": {"name": "x"},
        "task": {"name": task},
        "finetune": {"base": "b", "train": ["t.jsonl"], **fields},
        "training": {"steps": 10, "global_batch_size": 8, **training},
    }
    config = FinetuneConfig.model_validate(given)
    model = FAMILIES.get("llama").section.model_validate(MODEL)
    return config, {field: (value, rule) for field, value, rule, _ in regularization_issues(config, model)}


@pytest.mark.parametrize(
    ("task", "fields", "field", "said"),
    [
        ("sft", {"adversarial": {"steps": 2}}, "finetune.adversarial.steps", "is of method pgd"),
        (
            "sft",
            {"adversarial": {"method": "pgd", "step_size": 2.0}},
            "finetune.adversarial.step_size",
            "epsilon is 1",
        ),
        ("sft", {"adversarial": {}, "train_layers": 1}, "finetune.adversarial", "no backward pass down to there"),
        ("preference", {"adversarial": {}}, "finetune.adversarial", "compares two answers"),
        ("sequence_classification", {"r_drop": 4.0}, "finetune.r_drop", "that dropout makes differ"),
        ("sft", {"r_drop": 4.0, "training": {"dropout": 0.1}}, "finetune.r_drop", "task sft has no such loss"),
        (
            "token_classification",
            {"r_drop": 4.0, "adversarial": {}, "training": {"dropout": 0.1}},
            "finetune.r_drop",
            "not supported with finetune.adversarial",
        ),
    ],
)
def test_what_cannot_be_together_is_refused(task, fields, field, said) -> None:
    _, issues = finetune(task, **fields)
    assert list(issues) == [field]
    assert said in issues[field][1]


def test_r_drop_doubles_the_rows() -> None:
    config, issues = finetune(r_drop=4.0, training={"dropout": 0.1})
    assert (passes_of(config), issues) == (Passes(dropout=True, copies=2), {})


def test_an_attack_adds_passes() -> None:
    for given, passes in (
        ({}, Passes(accumulated=2, computed=2)),
        ({"method": "pgd"}, Passes(accumulated=2, computed=4)),
    ):
        config, issues = finetune(adversarial=given)
        assert (passes_of(config), issues) == (passes, {})


def test_decay_toward_the_start_is_of_weights_that_a_base_gave() -> None:
    (problem,) = validate(pretrain(optimizer={"name": "adamw_l2sp"}))
    assert problem.field == "optimizer.name"
    assert "pretraining starts from random ones" in problem.rule
    config, issues = finetune()
    config = config.model_copy(update={"optimizer": AdamWL2SPSection()})
    assert issues == {}
    model = FAMILIES.get("llama").section.model_validate(MODEL)
    assert list(regularization_issues(config, model)) == []
    adapted = config.model_copy(update={"finetune": config.finetune.model_copy(update={"adapter": LoraSection()})})
    ((field, _, rule, _),) = regularization_issues(adapted, model)
    assert field == "optimizer.name"
    assert "leaves as they are" in rule
