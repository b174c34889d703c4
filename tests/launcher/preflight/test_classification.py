"""A classifier takes its labels from its examples, and what is wrong with them is found before a GPU is held."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.planning.plan import make_plan
from launcher.planning.resolve import complete_model
from launcher.preflight.base_model import _export
from launcher.preflight.checks import examine
from launcher.runs.prepare import prepare_run
from megatrain.base.errors import ExitCode
from megatrain.config.file import parse_config
from megatrain.config.rules import validate
from megatrain.model.family import FAMILIES
from tests.tokenizer_kinds import write_tokenizer

FINETUNE = """
run: {name: tuned}
finetune: {base: runs/tiny, train: [train.jsonl], validation: [held-out.jsonl], sequence_length: 64}
task: {name: sequence_classification}
training: {steps: 1, global_batch_size: 4}
"""


def write(file: Path, *labels: Any, **fields: Any) -> None:
    rows = [{"text": f"{file.stem} {number}", "label": label} | fields for number, label in enumerate(labels)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def finetune(tiny, here):
    """A function from overrides to a classification, from a run that is there."""
    write_tokenizer(here / "tokenizer", "byte_level")
    base = prepare_run(tiny("tokenizer.path=tokenizer"), make_plan(tiny()).chosen)
    base.step(10).mkdir(parents=True)
    (base.step(10) / "MANIFEST.json").touch()
    write(here / "train.jsonl", *["no", "yes"] * 20)
    write(here / "held-out.jsonl", "yes", "no")
    return lambda *overrides: parse_config(FINETUNE, overrides=list(overrides))


def errors(config) -> list[str]:
    found = examine(config).errors
    assert {error.code for error in found} == {ExitCode.DATA}
    return [error.text for error in found]


def test_labels_and_the_size_of_the_head_are_written_into_the_run(finetune) -> None:
    assert examine(finetune()).findings == []
    resolved = complete_model(finetune())
    assert resolved.task.classes == ("no", "yes")
    assert (resolved.model.num_labels, resolved.model.head_rows) == (2, 192)
    assert list(validate(resolved)) == []
    assert complete_model(finetune("task.labels=[yes,no,perhaps]")).model.num_labels == 3


def test_a_label_of_validation_that_training_lacks(finetune, here) -> None:
    write(here / "held-out.jsonl", "yes", "perhaps", "no")
    assert errors(finetune()) == [
        "finetune.validation: held-out.jsonl:2: label: 'perhaps': is not one of the 2 labels that are trained ('no', "
        "'yes'). Correct it, leave the row out, or name all labels in task.labels"
    ]


def test_a_label_that_no_example_has(finetune) -> None:
    warnings = examine(finetune("task.labels=[yes,no,perhaps]")).warnings
    said = "no example has the label 'perhaps' (task.labels)"
    assert [warning.text for warning in warnings] == [f"finetune.{part}: {said}" for part in ("train", "validation")]


def test_fewer_than_two_labels(finetune, here) -> None:
    write(here / "train.jsonl", "yes", "yes")
    assert errors(finetune()) == [
        "finetune.train: train.jsonl: label: its labels are 'yes': a classifier tells at least two apart. Add examples "
        "of another, or name all in task.labels"
    ]


def test_rows_without_the_fields_are_told_once_each(finetune, here) -> None:
    write(here / "train.jsonl", "yes", None, "no", None)
    assert errors(finetune()) == [
        f"finetune.train: train.jsonl:{line}: label: is not there: must be text or a whole number; the row has text, "
        "label. task.label_field names the field to read"
        for line in (2, 4)
    ]
    write(here / "train.jsonl", "yes", "no")
    assert errors(finetune("task.text_field=review"))[0].startswith(
        "finetune.train: train.jsonl:1: review: is not there as text; the row has text, label. task.text_field names"
    )


def test_what_contradicts_itself(finetune) -> None:
    config = complete_model(finetune())
    for change, field, rule in (
        ({"task": config.task.model_copy(update={"labels": ("a", "b", "a")})}, "task.labels", "has 'a' more than once"),
        (
            {"model": config.model.model_copy(update={"num_labels": 3})},
            "model.num_labels",
            "is not the number of task.labels (2)",
        ),
        (
            {"parallel": config.parallel.model_copy(update={"tensor_parallel": 5})},
            "parallel.tensor_parallel",
            "does not divide the 192 rows of the class head",
        ),
    ):
        changed = config.model_copy(update=change)
        assert (field, rule) in [(issue.field, issue.rule) for issue in validate(changed)]


def test_a_family_without_a_class_head(finetune, monkeypatch) -> None:
    config = complete_model(finetune())
    llama = FAMILIES.get("llama")
    deaf = replace(llama, rows=lambda section: llama.rows(section.model_copy(update={"num_labels": None})))
    monkeypatch.setitem(FAMILIES._entries, "llama", deaf)
    changed = config.model_copy(update={"model": config.model.model_copy(update={"initializer_range": 0.0123})})
    (issue,) = validate(changed)
    assert (issue.field, issue.value) == ("model.family", "llama")
    assert "has no head of classes" in issue.rule


def test_a_classifier_is_no_base_of_a_language_model(finetune, here) -> None:
    run = prepare_run(finetune(), make_plan(finetune()).chosen)
    run.step(1).mkdir(parents=True)
    (run.step(1) / "MANIFEST.json").touch()
    (here / "pairs.jsonl").write_text(json.dumps({"prompt": "who", "response": " me"}) + "\n")
    overrides = ["run.name=chat", "task={name: sft}", f"finetune.base={run}", "finetune.train=[pairs.jsonl]"]
    (error,) = examine(finetune(*overrides, "finetune.validation=[]")).errors
    assert (
        "is a classifier (task.name: sequence_classification), and task.name: sft needs a language model" in error.text
    )
    again = ["run.name=again", f"finetune.base={run}"]
    assert examine(finetune(*again)).errors == []


@pytest.mark.parametrize(
    ("task", "field", "rule"),
    [
        ("problem: regression, labels: [a, b]", "task.labels", "are of a classifier: a regression has none"),
        ("problem: regression, label_smoothing: 0.1", "task.label_smoothing", "is of task.problem: single_label"),
        ("problem: multi_label, class_weights: balanced", "task.class_weights", "is of task.problem: single_label"),
        (
            "class_weights: {maybe: 2}",
            "task.class_weights",
            "has a weight of 'maybe', which is not one of the labels (no, yes)",
        ),
        ("class_weights: {yes: 0, no: 0}", "task.class_weights", "is 0 for every label: nothing would be learnt"),
    ],
)
def test_what_a_problem_does_not_have(finetune, here, task, field, rule) -> None:
    if "regression" in task:
        write(here / "train.jsonl", 1, 2.5)
        write(here / "held-out.jsonl", 3)
    elif "multi" in task:
        write(here / "train.jsonl", ["no"], ["yes"])
        write(here / "held-out.jsonl", ["no"])
    config = finetune(f"task={{name: sequence_classification, {task}}}")
    assert (field, rule) in [(issue.field, issue.rule) for issue in validate(complete_model(config))]
    found = examine(config)
    assert any(error.text.startswith(f"{field}: ") and rule in error.text for error in found.errors)


def test_a_regression_has_one_output_and_no_labels_to_find(finetune, here) -> None:
    write(here / "train.jsonl", 1, 2.5, "0.5", *[1] * 30)
    write(here / "held-out.jsonl", 3)
    resolved = complete_model(finetune("task.problem=regression"))
    assert (resolved.model.num_labels, resolved.task.classes) == (1, ("LABEL_0",))
    assert examine(finetune("task.problem=regression")).errors == []


def test_early_stopping_needs_what_the_task_measures(finetune) -> None:
    stopping = "training.early_stopping={metric: f1/maybe}"
    texts = [error.text for error in examine(finetune(stopping)).errors]
    assert any("training.early_stopping.metric: f1/maybe: is not measured by this task" in text for text in texts), (
        texts
    )
    assert examine(finetune("training.early_stopping={metric: f1/yes}")).errors == []
    texts = [error.text for error in examine(finetune(stopping, "finetune.validation=[]")).errors]
    assert any("needs finetune.validation: what an evaluation reads" in text for text in texts), texts


def test_what_cannot_be_exported_is_told_before_training() -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    gemma = {"family": "gemma3", "vocab_size": 512, "num_labels": 2, "classifies": "span", **sizes}
    section = FAMILIES.get("gemma3").section
    (found,) = _export(section.model_validate(gemma))
    assert found.level == "warning"
    assert "transformers has no classifier of its tokens or spans" in found.text
    assert list(_export(section.model_validate(gemma | {"classifies": "sequence"}))) == []
