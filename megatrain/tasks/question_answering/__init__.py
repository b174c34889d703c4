"""Extractive question answering: where in a text a question is answered, on causal models and encoders."""

from megatrain.tasks.question_answering.section import QuestionAnsweringSection
from megatrain.tasks.registry import TASKS, TaskSpec

TASKS.register(
    "question_answering",
    TaskSpec(
        section=QuestionAnsweringSection,
        task="megatrain.tasks.question_answering.task:QuestionAnswering",
        trains="finetune",
        read_examples="megatrain.data.examples.questions:read_questions",
        check_rows="megatrain.data.examples.questions:check_rows",
        attention="any",
        metrics=lambda section: ("validation_loss", "exact_match", "answer_f1"),
    ),
)
