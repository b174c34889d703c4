"""An evaluation for people and programs: text, JSON, and a folder with report.md and report.html."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from megatrain.base.errors import ConfigError
from megatrain.base.files import reason
from megatrain.base.terminal import printable
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.evaluation.calibration import calibration, expected_error
from megatrain.evaluation.checkpoint import Evaluation
from megatrain.evaluation.curve import read_curve, svg
from megatrain.evaluation.page import Section, Table, html_page, markdown
from megatrain.monitor.metric import METRICS
from megatrain.run.inputs import load_run

_WORST = 20  # mistakes
_SHOWN = 200  # characters of a text
_MOST_CLASSES = 30  # in a confusion matrix that people read


def as_dict(found: Evaluation) -> dict[str, Any]:
    classes = None if found.classes is None else asdict(found.classes)
    names = ("run", "checkpoint", "task", "data")
    return {name: str(getattr(found, name)) for name in names} | {
        "step": found.step,
        "ensemble": [str(one) for one in found.others],
        "metrics": found.metrics,
        "classes": classes,
    }


def as_text(found: Evaluation) -> str:
    """Lines for a terminal."""
    lines = [f"{_answering(found)} on {found.data}"]
    width = max(map(len, found.metrics))
    lines += [f"  {name:{width}}  {shown(name, value)}" for name, value in found.metrics.items()]
    if found.classes is not None:
        width = max(len("label"), *(len(score.name) for score in found.classes.classes))
        lines.append(f"\n  {'label':{width}}  precision  recall     F1  examples")
        lines += [
            f"  {score.name:{width}}  {score.precision:9.3f}  {score.recall:6.3f}  {score.f1:5.3f}  {score.there:8,}"
            for score in found.classes.classes
        ]
    return "\n".join(lines)


def _answering(found: Evaluation) -> str:
    return " with ".join(map(str, (found.checkpoint, *found.others)))


def write_report(found: Evaluation, folder: Path) -> None:
    """Write report.md and report.html into a new folder; the page needs nothing else, and no network.

    Raises:
        ConfigError: the folder cannot be made.
    """
    title = f"{found.run.path.name}, step {found.step:,}"
    parts = sections(found)
    points = read_curve(found.run)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--report {folder}: cannot be made: {reason(error)}") from None
    (folder / "report.md").write_text(markdown(title, parts), encoding="utf-8")
    (folder / "report.html").write_text(html_page(title, parts, svg(points)), encoding="utf-8")


def sections(found: Evaluation) -> list[Section]:
    table = Table(["metric", "value"], [[name, shown(name, value)] for name, value in found.metrics.items()])
    parts = [Section("Metrics", f"{_answering(found)}, on {found.data} (task {found.task}).", table)]
    if found.classes is None:
        return parts
    report = found.classes
    rows = [
        [score.name, f"{score.precision:.3f}", f"{score.recall:.3f}", f"{score.f1:.3f}", f"{score.there:,}"]
        for score in report.classes
    ]
    averages = f"Accuracy {report.accuracy:.3f}, macro F1 {report.macro_f1:.3f}, weighted F1 {report.weighted_f1:.3f}."
    parts.append(Section("Labels", averages, Table(["label", "precision", "recall", "F1", "examples"], rows)))
    names = [score.name for score in report.classes]
    if len(names) <= _MOST_CLASSES:
        counts = [[name, *map(str, row)] for name, row in zip(names, report.confusion, strict=True)]
        explained = "A row for each label that is there, a column for each that was said."
        parts.append(Section("Confusion matrix", explained, Table(["", *names], counts)))
    answers = _answers(found)
    bins = calibration([answer.confidence for answer in answers], [answer.right for answer in answers])
    parts.append(
        Section(
            "Calibration",
            f"Expected calibration error {expected_error(bins):.3f}: how far the probability of what is said lies from "
            "how often it is right.",
            Table(
                ["probability", "answers", "mean probability", "right"],
                [
                    [f"{b.low:.1f} to {b.high:.1f}", f"{b.answers:,}", f"{b.confidence:.3f}", f"{b.accuracy:.3f}"]
                    for b in bins
                ],
            ),
        )
    )
    wrong = sorted((answer for answer in answers if not answer.right), key=lambda answer: answer.chance)
    parts.append(
        Section(
            "Worst mistakes",
            f"{len(wrong):,} of {len(answers):,} answers are wrong; those that gave the true label the least.",
            Table(
                ["label", "said", "probability of the label", "text"],
                [
                    [names[one.there], names[one.said], f"{one.chance:.4f}", text]
                    for one, text in zip(wrong[:_WORST], _texts(found, wrong[:_WORST]), strict=True)
                ],
            ),
        )
    )
    return parts


class _Answer(NamedTuple):
    example: int
    there: int
    said: int
    confidence: float  # probability of what was said
    chance: float  # of what is there

    @property
    def right(self) -> bool:
        return self.there == self.said


def _answers(found: Evaluation) -> list[_Answer]:
    return [
        _Answer(number, there, said, float(row[said]), float(row[there]))
        for number, example in enumerate(found.examples)
        for there, said, row in zip(example.there, example.said, example.probabilities, strict=True)
    ]


def _texts(found: Evaluation, answers: list[_Answer]) -> list[str]:
    config = load_run(found.run)
    assert config.tokenizer is not None, "a classifier's run has one"
    tokenizer = Tokenizer.load(config.tokenizer.path)
    texts = [tokenizer.decode(found.examples[one.example].ids, skip_special_tokens=True) for one in answers]
    return [printable(" ".join(text.split())[:_SHOWN]) for text in texts]


def shown(name: str, value: float) -> str:
    """A metric's value for people."""
    if METRICS.split(name)[1] in METRICS:
        return METRICS.get(name).format(value)
    return f"{value:.4f}" if math.isfinite(value) and abs(value) < 1e4 else f"{value:.4g}"
