"""A resolved run is a type in which nothing is undecided."""

import pytest

from megatrain.base.errors import ConfigError
from megatrain.config.file import dump_config, parse_config
from megatrain.config.resolved import ResolvedFinetune, ResolvedPretrain, resolved
from tests.config.test_sections import MODEL
from tests.decided import DECIDED

PRETRAIN = f"""
run: {{name: x}}
model: {MODEL}
data: {{sequence_length: 8, train: [{{path: a}}]}}
training: {{steps: 1, global_batch_size: 1, precision: bf16}}
"""
FINETUNE = f"""
run: {{name: x}}
model: {MODEL}
tokenizer: {{path: t}}
finetune: {{base: b, train: [a], sequence_length: 8}}
training: {{steps: 1, global_batch_size: 1}}
"""


@pytest.mark.parametrize(("text", "kind"), [(PRETRAIN, ResolvedPretrain), (FINETUNE, ResolvedFinetune)])
def test_what_is_decided_is_resolved_and_read_back(text, kind) -> None:
    run = resolved(parse_config(text, overrides=DECIDED), "x")
    assert type(run) is kind
    assert resolved(parse_config(dump_config(run)), "x") == run


@pytest.mark.parametrize("left_out", DECIDED)
def test_what_is_left_undecided_is_named(left_out) -> None:
    field = left_out.partition("=")[0]
    config = parse_config(PRETRAIN, overrides=[one for one in DECIDED if one != left_out])
    with pytest.raises(ConfigError, match=rf"^run: is not of a run that was started: {field} is undecided$"):
        resolved(config, "run")


def test_a_vocabulary_or_a_model_that_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size is undecided"):
        resolved(parse_config(PRETRAIN, overrides=[*DECIDED, "model.vocab_size=auto"]), "run")
    text = "{run: {name: x}, finetune: {base: b, train: [a]}, training: {steps: 1, global_batch_size: 1}}"
    with pytest.raises(ConfigError, match=r"finetune.sequence_length, model, tokenizer is undecided"):
        resolved(parse_config(text, overrides=DECIDED), "run")
