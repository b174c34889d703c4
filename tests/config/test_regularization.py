"""Rules of dropout, and what it adds to the passes."""

from dataclasses import replace

from megatrain.config.regularization import Passes, passes_of
from megatrain.config.rules import validate
from megatrain.model.architecture import FAMILIES
from tests.config.test_sections import pretrain


def test_a_family_that_does_not_say_where_dropout_stands_is_refused(monkeypatch) -> None:
    config = pretrain(training={"steps": 10, "global_batch_size": 8, "dropout": 0.1})
    assert list(validate(config)) == []
    assert passes_of(config) == Passes(dropout=True)
    monkeypatch.setitem(FAMILIES._entries, "llama", replace(FAMILIES.get("llama"), residual=()))
    (problem,) = validate(config)
    assert (problem.field, problem.value) == ("training.dropout", 0.1)
    assert "llama does not say" in problem.rule
