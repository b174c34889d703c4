"""`megatrain data`: prepare, inspect and verify token shards; train a tokenizer."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from launcher.data_stream import stream
from megatrain.errors import DataError

app = typer.Typer(no_args_is_help=True, help="Turn text into token shards, and look at them.", rich_markup_mode=None)
tokenizer_app = typer.Typer(no_args_is_help=True, help="Tokenizers.", rich_markup_mode=None)
app.add_typer(tokenizer_app, name="tokenizer")
app.command()(stream)

Inputs = Annotated[list[str], typer.Argument(metavar="INPUT…", help="files, folders or quoted glob patterns")]
TextField = Annotated[str, typer.Option(help="the field of a jsonl line or table row that holds the text")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.command()
def prepare(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="folder to write")],
    tokenizer: Annotated[Path, typer.Option(help="a folder with tokenizer.json, or the file")],
    text_field: TextField = "text",
    holdout: Annotated[float, typer.Option(help="share of the documents to hold out, by a hash of their text")] = 0.0,
    holdout_out: Annotated[Path | None, typer.Option(help="folder for what is held out")] = None,
    block_tokens: Annotated[int, typer.Option(help="tokens a block; the sequence length must divide it")] = 1 << 18,
    shard_mebibytes: Annotated[int, typer.Option(help="size of a shard, about")] = 256,
    workers: Annotated[int, typer.Option(help="tokenising processes; 0: one for each CPU")] = 0,
) -> None:
    """Tokenise text into shards that a run reads.

    Reads .jsonl (also .gz and .zst), .parquet, .arrow, and any other file as one plain-text document. Killed and run
    again, it goes on where it was; the result does not depend on the number of workers.

    \b
    megatrain data prepare corpus/*.jsonl.zst --out data/web --tokenizer data/tokenizer
    megatrain data prepare 'src/**/*.py' --out data/code --tokenizer data/tokenizer \\
        --holdout 0.01 --holdout-out data/validation
    """
    from megatrain.data.prepare import PrepareOptions
    from megatrain.data.prepare import prepare as run

    options = PrepareOptions(
        inputs=tuple(inputs),
        out=out,
        tokenizer=tokenizer,
        text_field=text_field,
        holdout=holdout,
        holdout_out=holdout_out,
        block_tokens=block_tokens,
        shard_bytes=shard_mebibytes << 20,
        workers=workers or len(os.sched_getaffinity(0)),
    )
    folders = [folder for folder in (out, holdout_out) if folder is not None]
    for folder, manifest in zip(folders, run(options), strict=True):
        typer.echo(
            f"{folder}: {manifest.tokens:,} tokens, {manifest.documents:,} documents, {len(manifest.shards)} shards"
        )


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="a prepared folder")],
    as_json: AsJson = False,
) -> None:
    """Show what a prepared folder holds: sources, tokens, document lengths, how it begins.

    \b
    megatrain data inspect data/web
    megatrain data inspect data/web --json | jq .tokens
    """
    from megatrain.data.inspection import inspect_data

    found = inspect_data(folder)
    typer.echo(json.dumps(found.as_json(), ensure_ascii=False) if as_json else found.as_text())


@app.command()
def verify(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER…", help="prepared folders")],
) -> None:
    """Hash every byte of prepared folders; exits with 4 and names each damaged file.

    \b
    megatrain data verify data/web data/validation
    """
    from megatrain.data.verify import find_damage

    damage: list[str] = []
    for folder in folders:
        try:
            found = list(find_damage(folder))
        except DataError as error:
            found = [str(error)]
        damage += found
        if not found:
            typer.echo(f"{folder}: every byte is as it was written")
    if damage:
        raise DataError("\n".join(damage))


@tokenizer_app.command()
def train(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="folder to write tokenizer.json to")],
    vocab_size: Annotated[int, typer.Option(help="tokens, special ones included")] = 32768,
    text_field: TextField = "text",
) -> None:
    """Train a byte-level BPE. The folder opens with transformers' AutoTokenizer, too.

    \b
    megatrain data tokenizer train 'corpus/*.jsonl' --out data/tokenizer --vocab-size 32768
    """
    from megatrain.data.tokenizer import train_tokenizer

    trained = train_tokenizer(inputs, out, vocab_size, text_field=text_field)
    typer.echo(
        f"{out}: {trained.vocab_size:,} tokens; end of document: id {trained.eos_id}, padding: id {trained.pad_id}"
    )
