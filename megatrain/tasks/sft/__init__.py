"""Supervised fine-tuning on prompts and responses."""

from megatrain.tasks.registry import TASKS, TaskSpec
from megatrain.tasks.sft.section import SFTSection

TASKS.register(
    "sft",
    TaskSpec(
        section=SFTSection,
        task="megatrain.tasks.sft.task:SFT",
        trains="finetune",
        read_examples="megatrain.data.examples.example_set:read_example_set",
        check_rows="megatrain.data.examples.example_set:check_rows",
        metrics=lambda section: ("validation_loss", "perplexity", "bits_per_byte"),
    ),
)
