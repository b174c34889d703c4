"""Each row of a file with what a run's model says of it, in their order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatrain.base.errors import DataError
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_rows import Mistakes, usable
from megatrain.data.examples.prompt_completion import Pair, PairReader
from megatrain.data.text.rows import Row, read_rows
from megatrain.evaluation.checkpoint import OpenCheckpoint
from megatrain.evaluation.ensemble import check_alike
from megatrain.evaluation.predict import labels_of
from megatrain.generate import Writer
from megatrain.generation.sampling import Sampling
from megatrain.run.directory import locate
from megatrain.run.inputs import load_run
from megatrain.tasks.sft.section import SFTSection

_ANSWER = "x"  # stands for the response that a row need not have


def predictions(
    path: Path,
    file: Path,
    *,
    max_new_tokens: int,
    batch_size: int,
    others: Sequence[Path] = (),
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row of a file of jsonl, csv, parquet or arrow, and its prediction: see `predict.labels_of`; of sft the
    `response` that the model generates, the likeliest token each time.

    Args:
        others: of classifiers, runs or checkpoints whose probabilities are averaged with the run's.

    Raises:
        CheckpointError: there is no whole checkpoint.
        ConfigError: the run's task predicts nothing, or the others are not alike.
        DataError: the file cannot be read, or a row has no text or prompt; names file and line.
    """
    rows = list(read_rows(file))
    if not rows:
        raise DataError(f"{file}: holds no rows")
    config = load_run(locate(path)[0])
    check_alike(locate(path)[0], config, others)
    if isinstance(config.task, SFTSection) and config.tokenizer is not None:
        pairs = _prompts(rows, config.task, ChatTemplate.load(config.tokenizer.path))
        writer = Writer(path, Sampling(), max_new_tokens=max_new_tokens, warn=warn)
        said: Iterator[dict[str, Any]] = ({"response": text} for text in writer.responses(pairs, batch_size=batch_size))
    else:
        said = labels_of(OpenCheckpoint(path, warn, others=others), rows, name=str(file), warn=warn)
    return ((row.fields, one) for row, one in zip(rows, said, strict=True))


def _prompts(rows: Sequence[Row], section: SFTSection, template: ChatTemplate | None) -> list[Pair]:
    """As fine-tuning reads them."""
    reader, mistakes = PairReader(section, template), Mistakes()
    answered = (Row(row.fields | _answer(row.fields, section), row.where, 0) for row in rows)
    pairs = list(usable(answered, reader.pair, mistakes))
    mistakes.demand_none()
    return pairs


def _answer(row: Mapping[str, Any], section: SFTSection) -> dict[str, Any]:
    """What has to be in the place of an answer for the row to be read as one with an answer."""
    messages = row.get(section.messages_field)
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        last = {"role": "assistant", "content": _ANSWER}
        given = messages[:-1] if messages[-1].get("role") == "assistant" else messages
        return {section.messages_field: [*given, last]}
    return {section.response_field: _ANSWER, "output": _ANSWER}
