"""`megatrain data preview`: examples as the model sees them."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.options import Json, Overrides
from megatrain.base.terminal import is_terminal, printable, printable_json, say

if TYPE_CHECKING:
    from megatrain.config import Config, FinetuneConfig, PretrainConfig
    from megatrain.data.examples.example_set import ExampleSet
    from megatrain.data.text.pieces import Piece, Shown

_LEARNT, _ADDED, _LABEL, _PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[33m", "\x1b[0m"


def preview(
    file: Annotated[Path, typer.Argument(help="a run's configuration, or its folder", metavar="FILE")],
    overrides: Overrides = None,
    count: Annotated[int, typer.Option("-n", min=1, max=1000, help="how many")] = 3,
    seed: Annotated[int | None, typer.Option(min=0, help="drawn from all, by this seed; default: the first")] = None,
    validation: Annotated[bool, typer.Option("--validation", help="of finetune.validation")] = False,
    as_json: Json = False,
) -> None:
    """Show examples as the model sees them: what is learnt, what the tokenizer and its template put around it.

    On a terminal in colour; elsewhere ⟦what is learnt⟧ and ‹what was added›, labels of tokens behind a slash.

    \b
    megatrain data preview configs/dialogue.yaml -n 5 --seed 1
    megatrain data preview run.yaml task.train_on=last_turn --json | jq .targets
    """
    from megatrain.base.errors import ConfigError
    from megatrain.config import FinetuneConfig
    from megatrain.config.file import load_config, load_own_config

    config = (
        load_own_config(file / "config.yaml", overrides or []) if file.is_dir() else load_config(file, overrides or [])
    )
    if validation and not (isinstance(config, FinetuneConfig) and config.finetune.validation):
        raise ConfigError(f"--validation: {file} has no finetune.validation.")
    found = list(_found(config, count, seed, validation))
    if as_json:
        for shown in found:
            say(printable_json(shown.to_json()))
        return
    colour = is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")
    for shown in found:
        print(_text(shown, colour), flush=True)
    tokens, targets = sum(len(one.token_ids) for one in found), sum(one.targets for one in found)
    noted = sum(one.note is not None for one in found)
    say(f"{len(found):,} shown: {tokens:,} tokens, {targets:,} of them learnt; {noted:,} with a note")


def _found(config: "Config", count: int, seed: int | None, validation: bool) -> "Iterator[Shown]":
    from launcher.planning.resolve import complete_model
    from megatrain.config import FinetuneConfig

    config = complete_model(config)
    if isinstance(config, FinetuneConfig):
        return _examples(config, count, seed, validation)
    return _samples(config, count, seed)


def _examples(config: "FinetuneConfig", count: int, seed: int | None, validation: bool) -> "Iterator[Shown]":
    from launcher.planning.resolve import tokenizer_path
    from megatrain.base.errors import ConfigError
    from megatrain.base.registry import load_object
    from megatrain.data.examples.chat_template import ChatTemplate
    from megatrain.data.examples.preview import Previewer, choose_rows
    from megatrain.data.text.tokenizer import Tokenizer
    from megatrain.tasks.registry import TASKS

    path = tokenizer_path(config)
    if path is None:
        raise ConfigError("tokenizer.path: the base has no tokenizer; give one.")
    tokenizer, template = Tokenizer.load(path), ChatTemplate.load(path)
    read = load_object(TASKS.get(config.task.name).read_examples)

    def read_files(paths: Sequence[str]) -> "ExampleSet":
        arguments = {"template": template, "sequence_length": config.sequence_length, "model": config.model}
        found: ExampleSet = read(paths, tokenizer, config.task, **arguments)
        return found

    sets = config.finetune.validation_sets.values()
    paths = [path for of_set in sets for path in of_set] if validation else config.finetune.train
    rows = choose_rows(paths, count, seed)
    return Previewer(read_files, tokenizer, config.task, template).examples(rows)


def _samples(config: "PretrainConfig", count: int, seed: int | None) -> "Iterator[Shown]":
    from megatrain.base.registry import load_object
    from megatrain.data.checks.preview_samples import preview_samples

    masked = config.task.name == "masked_lm"
    masking = load_object("megatrain.tasks.masked_lm.task:masking_of")(config) if masked else None
    return preview_samples(config, count, seed, masking)


def _text(shown: "Shown", colour: bool) -> str:
    counts = f"{len(shown.token_ids):,} tokens, {shown.targets:,} learnt"
    lines = [f"── {printable(shown.where)} · {counts}"]
    if shown.note:
        lines.append(f"note: {printable(shown.note)}")
    if shown.pieces:
        lines.append("".join(_piece(piece, colour) for piece in shown.pieces))
    return "\n".join([*lines, ""])


def _piece(piece: "Piece", colour: bool) -> str:
    text = printable(piece.text)
    label = "" if piece.label is None else f"/{json.dumps(piece.label, ensure_ascii=False)[1:-1]}"
    if colour:
        style = (_LEARNT if piece.learnt else "") + (_ADDED if piece.added else "")
        return f"{style}{text}{_PLAIN}" + (f"{_LABEL}{printable(label)}{_PLAIN}" if label else "")
    text = f"‹{text}›" if piece.added else text
    return f"⟦{text}{printable(label)}⟧" if piece.learnt else text
