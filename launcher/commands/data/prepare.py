"""`megatrain data prepare`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.options import Inputs, TextField
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import say

if TYPE_CHECKING:
    from megatrain.data.folder.manifest import Manifest


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
