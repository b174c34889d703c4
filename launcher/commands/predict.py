"""`megatrain predict`."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from launcher.commands.options import Json, RunOrCheckpoint, existing
from megatrain.base.errors import ConfigError
from megatrain.base.files import write_atomically
from megatrain.base.terminal import complain, say


def predict(
    path: RunOrCheckpoint,
    file: Annotated[Path, typer.Option("--input", help="rows: jsonl, csv, parquet or arrow", metavar="FILE")],
    out: Annotated[Path, typer.Option("--output", help="a new file of jsonl", metavar="FILE")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="of a generated response")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="responses generated at once")] = 8,
    together: Annotated[
        list[Path] | None,
        typer.Option("--with", help="another classifier, whose probabilities are averaged with it", metavar="RUN"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what a fine-tuned model says of each row beside it: `prediction`, in the rows' order.

    A label with the probabilities of all, a tag for each word, or the response to a prompt. Rows need no label.

    Example: megatrain predict runs/reviews --input new.jsonl --output answered.jsonl

    Example: megatrain predict runs/seed-1 --with runs/seed-2 --input new.jsonl --output answered.jsonl
    """
    from megatrain.evaluation.predictions import predictions

    for one in (path, *(together or ())):
        existing(one)
    if out.exists():
        raise ConfigError(f"--output {out}: is there already. Name a new file")
    warn = partial(complain, kind="warning")
    options: Any = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "others": together or ()}
    rows = predictions(path, existing(file), warn=warn, **options)
    lines = [json.dumps(row | {"prediction": said}, ensure_ascii=False, default=str) for row, said in rows]
    write_atomically(out, "".join(f"{line}\n" for line in lines))
    done = {"rows": len(lines), "output": str(out)}
    say(json.dumps(done) if as_json else f"{out}: {len(lines):,} rows with `prediction`")
