"""What a task registers, without torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from megatrain.base.errors import ConfigError
from megatrain.base.registry import Registry
from megatrain.base.section import Section


class TaskSection(Section):
    """What every task's section has."""

    name: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what a classifier tells apart, in the order of its logits, once they are known; of a language model,
        and before, none."""
        return ()

    @property
    def classifies(self) -> Literal["sequence", "token", "span"]:
        """Of a classifier: whole examples, each of their tokens, or where a span of them begins and ends."""
        return "sequence"

    @property
    def problem_type(self) -> str | None:
        """What `transformers` calls the loss of a classifier of sequences."""
        return "single_label_classification"

    @property
    def num_labels(self) -> int | None:
        return len(self.classes) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A task, as the launcher knows it.

    Attributes:
        section: its `task:` section.
        task: "package.module:name" of a `megatrain.tasks.base.Task`, or of a function of the run that makes one.
        trains: "pretrain": from the seed, on `data:`; "finetune": from `finetune.base`, on `finetune.train`.
        read_examples: of a task that fine-tunes: "package.module:function" with the signature and result of
            `megatrain.data.examples.example_set.read_example_set`; the launcher counts its rows.
        complete: "package.module:function" of (section, paths of the training examples, the section that the run began
            with, or None) -> the section with what it takes from the examples, such as their labels.
        check_rows: likewise, of `check_rows` beside it, for when there is no tokenizer yet.
        attention: of the models that it trains.
        issues: rules between the fields of a run: (field, value, rule, fix).
        whole_sequences: its loss needs whole sequences on a rank: no context parallelism.
        metrics: of a section: names of what its evaluations measure, as far as they are known before the start; none
            where they are not.
        has_r_drop: of a section: whether its loss can compare two passes over an example (finetune.r_drop).
        check_tokenizer: "package.module:function" of (section, tokenizer.path), which raises what the task misses.
    """

    section: type[TaskSection]
    task: str
    trains: Literal["pretrain", "finetune"]
    read_examples: str = ""
    check_rows: str = ""
    complete: str = ""
    attention: Literal["causal", "bidirectional", "any"] = "causal"
    issues: Callable[[Any], Iterator[tuple[str, Any, str, str]]] = lambda config: iter(())
    metrics: Callable[[Any], tuple[str, ...]] = lambda section: ()
    has_r_drop: Callable[[Any], bool] = lambda section: False
    check_tokenizer: str = ""
    whole_sequences: bool = False

    def __post_init__(self) -> None:
        if self.trains == "finetune" and not (self.read_examples and self.check_rows):
            raise ConfigError(f"task {self.task}: fine-tunes, and so needs read_examples and check_rows")


TASKS: Registry[TaskSpec] = Registry("task")
