"""What a classifier says of each row of a file."""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch

from megatrain.base.errors import ConfigError, DataError
from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.examples.example_rows import field_of
from megatrain.data.text.rows import Row
from megatrain.evaluation.checkpoint import CLASSIFIERS, OpenCheckpoint, on_data, says_one_label
from megatrain.evaluation.classified import Classified, classified
from megatrain.tasks.on_examples import ExampleTask
from megatrain.tasks.sequence_classification.section import SequenceClassificationSection
from megatrain.tasks.token_classification.section import TokenClassificationSection

Section = SequenceClassificationSection | TokenClassificationSection
_DIGITS = 6  # of a probability


def labels_of(
    opened: OpenCheckpoint, rows: Sequence[Row], *, name: str, warn: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Of each row `label` and `probabilities`, or `tags`, of which a word beyond the end of a sequence has None. Rows
    need no label.

    Args:
        name: of the rows' file.
        warn: told how many are cut.

    Raises:
        ConfigError: the run's task is none of CLASSIFIERS.
        DataError: a row has no text; names file and line.
    """
    config = opened.config
    if not says_one_label(config) or not isinstance(config, ResolvedFinetune):
        raise ConfigError(
            f"{opened.run}: task.name: {config.task.name}: predictions are of {', '.join(CLASSIFIERS)} with one label "
            "each, and of sft"
        )
    section = cast(Section, config.task)
    # no row is left out: one that is too long is cut
    config = config.model_copy(update={"task": section.model_copy(update={"truncation": "cut"})})
    with _labelled(rows, section) as copy, torch.no_grad():
        changed, _ = on_data(config, [copy], "validation")
        with _own_places(copy, rows):
            task = opened.task(changed)
        assert isinstance(task, ExampleTask)
        for line in task.warnings():
            if line.startswith(copy):  # others are of the labels, which are made up
                warn(line.replace(copy, name).partition(". Raise")[0])
        batches: Any = opened.batches(task)
        examples = (one for batch in batches for one in classified(opened.model, batch, opened.ranks))
        for row, example in zip(rows, examples, strict=True):
            yield _said(example, section, row.fields)


def _said(example: Classified, section: Section, row: Mapping[str, Any]) -> dict[str, Any]:
    names = section.classes
    if isinstance(section, SequenceClassificationSection):
        ((number,), (probabilities,)) = example.said, example.probabilities.tolist()
        shares = {name: round(share, _DIGITS) for name, share in zip(names, probabilities, strict=True)}
        return {"label": names[number], "probabilities": shares}
    words = field_of(row, section.tokens_field)
    tags: list[str | None] = [names[number] for number in example.said]
    return {"tags": tags + [None] * (len(words) - len(tags))}


@contextmanager
def _labelled(rows: Sequence[Row], section: Section) -> Iterator[str]:
    """A file of the rows in which each has a label: the task's own reader wants one, which plays no part here."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row.fields | _placeholder(row.fields, section), default=str) + "\n")
        file.flush()
        yield file.name


def _placeholder(row: Mapping[str, Any], section: Section) -> dict[str, Any]:
    """A field by its whole name counts before a path of names."""
    if isinstance(section, SequenceClassificationSection):
        return {section.label_field: section.classes[0]}
    words = field_of(row, section.tokens_field)
    return {section.tags_field: [section.classes[0]] * (len(words) if isinstance(words, list) else 0)}


@contextmanager
def _own_places(copy: str, rows: Sequence[Row]) -> Iterator[None]:
    """Where a message names a line of the copy, it names the file and line that the row is from."""
    try:
        yield
    except DataError as error:
        pattern = re.compile(re.escape(copy) + r":(\d+)")
        raise DataError(pattern.sub(lambda match: rows[int(match[1]) - 1].where, str(error))) from None
