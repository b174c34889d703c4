"""How near generated texts are to the ones that are there, by the libraries that define the measures."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from megatrain.base.errors import PreflightError
from megatrain.config.evaluation import TextMetric
from megatrain.monitor.metric import METRICS, Metric

PACKAGES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge": "rouge_score"}  # modules, of the extra [metrics]
_ROUGE = ("rouge1", "rouge2", "rougeL")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _register(name: str, unit: str, words: str, pattern: str) -> None:
    METRICS.register(
        name, Metric(unit=unit, tag=f"validation/{name}", format=pattern.format, console=f"{words} {{value}}")
    )


_register("generated_exact_match", "share of generated responses that are the ones there", "exact match", "{:.1%}")
_register("generated_f1", "mean F1 of the words of generated responses, as SQuAD has it", "F1", "{:.3f}")
_register("bleu", "BLEU of generated responses, 0 to 100, by sacrebleu", "BLEU", "{:.2f}")
_register("chrf", "chrF of generated responses, 0 to 100, by sacrebleu", "chrF", "{:.2f}")
for _name in _ROUGE:
    _register(_name, f"mean {_name} F1 of generated responses, by rouge-score", _name, "{:.3f}")


def text_metrics(said: Sequence[str], there: Sequence[str], metrics: Sequence[TextMetric]) -> dict[str, float]:
    """Values of registered metrics, over pairs of texts.

    Raises:
        PreflightError: a package is not installed.
    """
    pairs = [(one.strip(), other.strip()) for one, other in zip(said, there, strict=True)]
    found: dict[str, float] = {}
    if "exact_match" in metrics:
        found["generated_exact_match"] = _mean([float(_normal(one) == _normal(other)) for one, other in pairs])
    if "f1" in metrics:
        found["generated_f1"] = _mean([squad_f1(one, other) for one, other in pairs])
    if "bleu" in metrics or "chrf" in metrics:
        sacrebleu = _package("bleu")
        texts, references = [one for one, _ in pairs], [[other for _, other in pairs]]
        if "bleu" in metrics:
            found["bleu"] = float(sacrebleu.corpus_bleu(texts, references).score)
        if "chrf" in metrics:
            found["chrf"] = float(sacrebleu.corpus_chrf(texts, references).score)
    if "rouge" in metrics:
        scorer = _package("rouge").rouge_scorer.RougeScorer(list(_ROUGE), use_stemmer=True)
        scores = [scorer.score(other, one) for one, other in pairs]
        found |= {name: _mean([score[name].fmeasure for score in scores]) for name in _ROUGE}
    return found


def squad_f1(said: str, there: str) -> float:
    """F1 of the words, after SQuAD's official script: lower case, without punctuation and articles."""
    ours, theirs = _normal(said).split(), _normal(there).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def _normal(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _package(metric: str) -> Any:
    name = PACKAGES[metric]
    try:
        return import_module(name if metric != "rouge" else f"{name}.rouge_scorer") and import_module(name)
    except ImportError:
        raise PreflightError(
            f"evaluation.generate.metrics: {metric}: {name} is not installed. Try pip install 'megatrain[metrics]'."
        ) from None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
