"""One rank's batches of an extractive question answering, exact match and F1."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.examples.packing import PackedRow
from megatrain.data.examples.questions import Asked, QuestionSet, Window, context_offsets
from megatrain.data.loading.batch import Batch
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks import loss_metrics  # noqa: F401 - registers validation_loss
from megatrain.tasks.base import LossSums, Model
from megatrain.tasks.classification import forward
from megatrain.tasks.on_examples import ExampleTask
from megatrain.tasks.question_answering.section import QuestionAnsweringSection
from megatrain.tasks.question_answering.spans import FIELDS, best_spans, span_loss, windows_of
from megatrain.tasks.question_answering.squad import exact_match, f1

for _name, _unit, _console in (
    ("exact_match", "percent of an evaluation's questions whose answer is predicted, as SQuAD compares them", "EM"),
    ("answer_f1", "percent: F1 of the words of predicted answers, in the mean of an evaluation, as SQuAD has it", "F1"),
):
    METRICS.register(
        _name, Metric(unit=_unit, tag=f"validation/{_name}", format="{:.2f}".format, console=f"{_console} {{value}}")
    )
METRICS.register(
    "validation_questions",
    Metric(unit="questions of an evaluation", tag=None, format="{:,.0f}".format, console="({value} questions)"),
)


class QuestionAnswering(ExampleTask):
    def __init__(self, config: ResolvedFinetune) -> None:
        super().__init__(config)
        self._section = cast(QuestionAnsweringSection, config.task)
        self._asked: list[Asked] = []  # of all validation sets, as windows are
        self._windows: list[Window] = []
        for name, found in self._sets.items():
            questions = cast(QuestionSet, found)
            self.held_out[name] = [_numbered(row, len(self._windows)) for row in self.held_out[name]]
            first = len(self._asked)
            self._windows += [window._replace(question=window.question + first) for window in questions.windows]
            self._asked += questions.asked
        self._offsets: list[list[tuple[int, int]]] = []
        if self._asked:
            tokenizer = Tokenizer.load(config.tokenizer.path)
            self._offsets = context_offsets(tokenizer, [asked.context for asked in self._asked])

    def loss(self, model: Model, batch: Batch) -> LossSums:
        return LossSums(span_loss(windows_of(forward(model, batch, None).float(), batch)))

    def evaluation_sums(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """The loss of how many windows, and the likeliest answer of each."""
        logits_BSC = forward(model, batch, None).float()
        if batch.example_targets is None:
            nothing = logits_BSC.new_zeros(())
            return {"loss": nothing, "windows": nothing, "spans": logits_BSC.new_zeros(0, 5)}
        windows = windows_of(logits_BSC, batch)
        spans = best_spans(windows, self._section.longest_answer)
        return {"loss": span_loss(windows), "windows": windows.is_mine.sum(), "spans": spans}

    def evaluation_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        predictions = self.predictions(sums["spans"])
        pairs = [(text, self._asked[question].answers) for question, text in predictions.items()]
        questions = max(len(pairs), 1)
        second = self._section.unanswerable
        return {
            "validation_loss": sums["loss"] / max(sums["windows"], 1.0),
            "exact_match": 100 * sum(exact_match(text, answers) for text, answers in pairs) / questions,
            "answer_f1": 100 * sum(f1(text, answers, unanswerable=second) for text, answers in pairs) / questions,
            "validation_questions": float(len(pairs)),
        }

    def predictions(self, spans: Tensor) -> dict[int, str]:
        """The text that answers each question that windows of it were seen of: the likeliest of all its windows, where
        that is likelier than that there is none."""
        best: dict[int, tuple[float, int, int, int]] = {}
        none: dict[int, float] = {}
        for number, first, last, score, null in sorted(spans.tolist()):
            window = self._windows[int(number)]
            found = (score, int(first) + window.shift, int(last) + window.shift, int(number))
            if window.question not in best or score > best[window.question][0]:
                best[window.question] = found
            none[window.question] = min(null, none.get(window.question, torch.inf))
        texts = {}
        for question, (score, first, last, _) in best.items():
            offsets, context = self._offsets[question], self._asked[question].context
            begin, end = offsets[first][0], offsets[last][1]
            is_none = self._section.unanswerable and none[question] > score
            texts[question] = "" if is_none else context[begin:end]
        return texts


def _numbered(row: PackedRow, first: int) -> PackedRow:
    """With windows that are counted from `first` on."""
    assert row.values is not None, "each window has values"
    values = row.values.copy()
    values[:, FIELDS.index("number")] += first
    return replace(row, values=values)
