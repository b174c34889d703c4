"""What generated responses need is found before the start."""

import pytest

from launcher.preflight import text_metrics
from launcher.preflight.text_metrics import check_text_metrics
from megatrain.base.errors import ConfigError
from megatrain.config.file import parse_config
from megatrain.config.rules import validate

FINETUNE = """
run: {name: tuned}
finetune: {base: b, train: [a.jsonl], validation: [v.jsonl]}
training: {steps: 1, global_batch_size: 4}
evaluation: {generate: {metrics: [exact_match, bleu, rouge]}}
"""


def test_a_missing_package_is_named(monkeypatch) -> None:
    config = parse_config(FINETUNE)
    assert list(check_text_metrics(config)) == []
    monkeypatch.setattr(text_metrics, "find_spec", lambda name: None)
    said = [finding.text for finding in check_text_metrics(config)]
    assert said == [
        f"evaluation.generate.metrics: {metric}: {package} is not installed. "
        "Try pip install 'megatrain[metrics]', or leave it out."
        for metric, package in (("bleu", "sacrebleu"), ("rouge", "rouge-score"))
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task={name: sequence_classification}", "is of task sft, .* and task.name is sequence_classification"),
        ("finetune.validation=[]", r"needs finetune\.validation"),
    ],
)
def test_runs_that_have_no_responses_are_refused(override, said) -> None:
    with pytest.raises(ConfigError, match=f"evaluation.generate.*{said}"):
        parse_config(FINETUNE, overrides=[override])


def test_a_pretraining_is_refused(tiny) -> None:
    section = parse_config(FINETUNE).evaluation
    config = tiny().model_copy(update={"evaluation": section})
    assert "evaluation.generate" in [issue.field for issue in validate(config)]
