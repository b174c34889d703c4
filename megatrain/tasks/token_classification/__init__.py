"""Token classification: a tag for each word, such as named entities, on causal models and encoders."""

from megatrain.tasks.labels import repeated
from megatrain.tasks.registry import TASKS, TaskSpec
from megatrain.tasks.token_classification.section import TokenClassificationSection

TASKS.register(
    "token_classification",
    TaskSpec(
        section=TokenClassificationSection,
        task="megatrain.tasks.token_classification.task:TokenClassification",
        trains="finetune",
        read_examples="megatrain.data.examples.tagged_words:read_tagged",
        check_rows="megatrain.data.examples.tagged_words:check_rows",
        complete="megatrain.data.examples.tagged_words:with_tags",
        attention="any",
        has_r_drop=lambda section: True,
        issues=repeated,
        metrics=lambda section: ("validation_loss", "accuracy", "entity_f1"),
    ),
)
