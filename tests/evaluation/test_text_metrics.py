"""Measures of generated texts are those of the libraries that define them."""

import importlib

import pytest

from megatrain.base.errors import PreflightError
from megatrain.evaluation import text_metrics as module
from megatrain.evaluation.text_metrics import squad_f1, text_metrics

SAID = ["The cat sat on the mat.", " a dog barked ", "nothing", ""]
THERE = ["the cat sat on a mat", "The dog did bark", "everything else", "gone"]


def test_of_squad_by_hand() -> None:
    found = text_metrics(SAID, THERE, ["exact_match", "f1"])
    assert found["generated_exact_match"] == 1 / 4, "articles, case and punctuation do not count"
    assert found["generated_f1"] == pytest.approx((1 + 2 * 1 / 5 + 0 + 0) / 4)
    assert squad_f1("", "the") == 1.0


def test_of_sacrebleu() -> None:
    import sacrebleu

    found = text_metrics(SAID, THERE, ["bleu", "chrf"])
    said, there = [text.strip() for text in SAID], [text.strip() for text in THERE]
    assert found["bleu"] == sacrebleu.BLEU().corpus_score(said, [there]).score > 0
    assert found["chrf"] == sacrebleu.CHRF().corpus_score(said, [there]).score > 0
    assert text_metrics(THERE, THERE, ["bleu"])["bleu"] == pytest.approx(100)


def test_of_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    found = text_metrics(SAID, THERE, ["rouge"])
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = [scorer.score(there, said)["rougeL"].fmeasure for said, there in zip(SAID, THERE, strict=True)]
    assert found.keys() == {"rouge1", "rouge2", "rougeL"}
    assert found["rougeL"] == pytest.approx(sum(expected) / 4)


def test_a_package_that_is_not_there_is_named(monkeypatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(module, "import_module", missing)
    with pytest.raises(PreflightError, match=r"bleu: sacrebleu is not installed.*megatrain\[metrics\]"):
        text_metrics(SAID, THERE, ["bleu"])
    assert importlib.import_module("sacrebleu")
