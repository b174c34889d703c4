"""`megatrain data`: prepare, inspect, verify and plan token shards; train and import tokenizers."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.data_stream import stream
from megatrain.base.errors import ConfigError, DataError
from megatrain.base.terminal import printable_json, say

if TYPE_CHECKING:
    from megatrain.data.folder.manifest import Manifest

app = typer.Typer(no_args_is_help=True, help="Turn text into token shards, and look at them.", rich_markup_mode=None)
tokenizer_app = typer.Typer(no_args_is_help=True, help="Tokenizers.", rich_markup_mode=None)
app.add_typer(tokenizer_app, name="tokenizer")
app.command()(stream)

INPUTS = "files, folders, quoted glob patterns, or hub:NAME[@REVISION][?subset=SUBSET&split=SPLIT]"
Inputs = Annotated[list[str], typer.Argument(metavar="INPUT…", help=INPUTS)]
TextField = Annotated[str, typer.Option(help="the field of a jsonl line or table row that holds the text")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.command()
def prepare(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="folder to write")],
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json or its folder, a SentencePiece or tiktoken file")],
    text_field: TextField = "text",
    skip_null: Annotated[
        bool, typer.Option("--skip-null", help="leave out, and count, rows whose text is null or not there")
    ] = False,
    max_document_mebibytes: Annotated[
        int, typer.Option(help="the most that a line, or a file that is one document, may have")
    ] = 32,
    holdout: Annotated[float, typer.Option(help="share of the documents to hold out, by a hash of their text")] = 0.0,
    holdout_out: Annotated[Path | None, typer.Option(help="folder for what is held out")] = None,
    pack: Annotated[str, typer.Option(help="concat; or best_fit, which cuts no document that fits a row")] = "concat",
    sequence_length: Annotated[int | None, typer.Option(help="of the rows that best_fit packs")] = None,
    dedup: Annotated[str, typer.Option(help="leave out copies: none, exact, or near (MinHash)")] = "none",
    near_similarity: Annotated[float, typer.Option(help="Jaccard similarity from which documents are alike")] = 0.8,
    min_characters: Annotated[int, typer.Option(help="leave out shorter documents")] = 0,
    max_characters: Annotated[int | None, typer.Option(help="leave out longer documents")] = None,
    max_repetition: Annotated[
        float | None, typer.Option(help="leave out documents of which a larger share repeats itself, such as 0.3")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="leave out others than these, such as en; give it again for more")
    ] = None,
    block_tokens: Annotated[int, typer.Option(help="tokens a block; the sequence length must divide it")] = 1 << 18,
    shard_mebibytes: Annotated[int, typer.Option(help="size of a shard, about")] = 256,
    workers: Annotated[int, typer.Option(help="tokenising processes; 0: one for each CPU")] = 0,
    gigatoken: Annotated[bool, typer.Option("--gigatoken", help="tokenise with gigatoken, checked as it goes")] = False,
) -> None:
    """Tokenise text into shards that a run reads.

    Reads JSON lines, csv, tsv and text (also .gz, .zst, .xz, .bz2, .lz4), parquet, arrow, folders of save_to_disk,
    datasets of the Hugging Face Hub, and tokens of Megatron-LM (.idx and .bin); says what each file was read as. A file
    of text is one document. Killed and run again, it goes on where it was; the result does not depend on the number of
    workers.

    \b
    megatrain data prepare corpus/*.jsonl.zst --out data/web --tokenizer data/tokenizer
    megatrain data prepare 'src/**/*.py' --out data/code --tokenizer data/tokenizer \\
        --holdout 0.01 --holdout-out data/validation
    megatrain data prepare 'hub:allenai/c4?subset=en' --out data/c4 --tokenizer data/tokenizer \\
        --pack best_fit --sequence-length 4096 --dedup near --language en --min-characters 200
    """
    from megatrain.data.checks.inspection import packing_lines
    from megatrain.data.preparation.prepare import PrepareOptions
    from megatrain.data.preparation.prepare import prepare as run
    from megatrain.data.preparation.selection import SelectionPolicy

    if dedup not in ("none", "exact", "near"):
        raise ConfigError(f"--dedup: {dedup}: must be none, exact or near")
    selection = SelectionPolicy(
        minimum_characters=min_characters,
        maximum_characters=max_characters,
        maximum_repetition=max_repetition,
        languages=tuple(language or ()),
        duplicates="keep" if dedup == "none" else dedup,  # type: ignore[arg-type]
        near_similarity=near_similarity,
    )
    options = PrepareOptions(
        inputs=tuple(inputs),
        out=out,
        tokenizer=tokenizer,
        text_field=text_field,
        skip_null=skip_null,
        maximum_bytes=max_document_mebibytes << 20,
        holdout=holdout,
        holdout_out=holdout_out,
        block_tokens=block_tokens,
        shard_bytes=shard_mebibytes << 20,
        pack=pack,  # type: ignore[arg-type]
        sequence_length=sequence_length,
        selection=selection,
        workers=workers or len(os.sched_getaffinity(0)),
        gigatoken=gigatoken,
    )
    folders = [folder for folder in (out, holdout_out) if folder is not None]
    manifests = run(options, sys.stderr)
    if manifests[0].left_out:
        left_out = (f"{count:,} {reason.replace('_', ' ')}" for reason, count in manifests[0].left_out.items())
        say(f"left out: {', '.join(left_out)}")
    for folder, manifest in zip(folders, manifests, strict=True):
        say("\n".join([_summary(folder, manifest), *(f"  {line}" for line in packing_lines(manifest))]))


def _summary(folder: Path, manifest: "Manifest") -> str:
    return f"{folder}: {manifest.tokens:,} tokens, {manifest.documents:,} documents, {len(manifest.shards)} shards"


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="a prepared folder")],
    png: Annotated[Path | None, typer.Option(help="also draw the lengths of documents into this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a prepared folder holds: sources, tokens, document lengths, how it begins.

    \b
    megatrain data inspect data/web --png lengths.png
    megatrain data inspect data/web --json | jq .tokens
    """
    from megatrain.data.checks.inspection import inspect_data

    found = inspect_data(folder)
    say(printable_json(found.as_json()) if as_json else found.as_text())
    if png:
        found.draw(png)


@app.command()
def verify(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER…", help="prepared folders")],
) -> None:
    """Hash every byte of prepared folders; exits with 4 and names each damaged file.

    \b
    megatrain data verify data/web data/validation
    """
    from megatrain.data.checks.verify import find_damage

    damage: list[str] = []
    for folder in folders:
        try:
            found = list(find_damage(folder, sys.stderr))
        except DataError as error:
            found = [str(error)]
        damage += found
        if not found:
            say(f"{folder}: every byte is as it was written")
    if damage:
        raise DataError("\n".join(damage))


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(help="the run, as YAML", metavar="FILE")],
    overrides: Annotated[list[str] | None, typer.Argument(help="fields to set", metavar="[KEY=VALUE]...")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run reads of each source in each stage; exits with 4 where that is more than data.maximum_epochs.

    \b
    megatrain data plan configs/llama-125m.yaml
    megatrain data plan configs/llama-125m.yaml training.tokens=5e9 --json
    """
    from launcher.preflight.data_plan import plan_data
    from megatrain.config import PretrainConfig
    from megatrain.config.file import load_config

    config = load_config(file, overrides or [])
    if not isinstance(config, PretrainConfig):
        raise ConfigError(f"{file}: a fine-tuning reads prompts and responses, not prepared sources.")
    found = plan_data(config)
    say(json.dumps(found.to_json()) if as_json else found.as_text())
    if refusals := [*found.refusals()]:
        raise DataError("\n".join(refusals))


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
    from megatrain.data.text.tokenizer import train_tokenizer

    trained = train_tokenizer(inputs, out, vocab_size, text_field=text_field)
    say(f"{out}: {trained.vocab_size:,} tokens; end of document: id {trained.eos_id}, padding: id {trained.pad_id}")


@tokenizer_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="a SentencePiece model, or a file of tiktoken ranks (or tekken.json)")],
    out: Annotated[Path, typer.Option(help="folder to write tokenizer.json to")],
    pattern: Annotated[
        str | None, typer.Option(help="how tiktoken cuts text: cl100k, o200k, gpt2, llama3, or a regular expression")
    ] = None,
) -> None:
    """Turn a SentencePiece model or tiktoken file into a tokenizer.json, compared with the library that it came from.

    \b
    megatrain data tokenizer import tokenizer.model --out data/tokenizer
    megatrain data tokenizer import cl100k_base.tiktoken --pattern cl100k --out data/tokenizer
    """
    from megatrain.data.text.tokenizer_import import import_tokenizer

    imported = import_tokenizer(file, out, pattern)
    say(f"{out}: {imported.vocab_size:,} tokens; end of document: id {imported.eos_id}, padding: id {imported.pad_id}")
