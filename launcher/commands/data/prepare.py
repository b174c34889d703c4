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
    from megatrain.data.preparation.selection import SelectionPolicy

Tokenizer = Annotated[Path, typer.Option(help="tokenizer.json or its folder, a SentencePiece or tiktoken file")]
SkipNull = Annotated[bool, typer.Option("--skip-null", help="skip, and count, rows whose text is null or not there")]
MostMebibytes = Annotated[int, typer.Option(help="the most that a line, or a file that is one document, may have")]
Holdout = Annotated[float, typer.Option(help="share of the documents to hold out, by a hash of their text")]
HoldoutOut = Annotated[Path | None, typer.Option(help="folder for what is held out")]
Pack = Annotated[str, typer.Option(help="concat; or best_fit, which cuts no document that fits a row")]
RowTokens = Annotated[int | None, typer.Option(help="of the rows that best_fit packs")]
Dedup = Annotated[str, typer.Option(help="skip copies: none, exact, or near (MinHash)")]
Similarity = Annotated[float, typer.Option(help="Jaccard similarity from which documents are alike")]
Shortest = Annotated[int, typer.Option(help="skip shorter documents")]
Longest = Annotated[int | None, typer.Option(help="skip longer documents")]
Repetition = Annotated[
    float | None, typer.Option(help="skip documents of which a larger share repeats itself, such as 0.3")
]
Languages = Annotated[list[str] | None, typer.Option(help="skip others than these, such as en; give it again for more")]
BlockTokens = Annotated[int, typer.Option(help="tokens per block; the sequence length must divide it")]
ShardMebibytes = Annotated[int, typer.Option(help="size of a shard, about")]
Workers = Annotated[int, typer.Option(help="tokenising processes; 0: one for each CPU")]
Gigatoken = Annotated[bool, typer.Option("--gigatoken", help="tokenise with gigatoken, checked as it goes")]


def prepare(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="folder to write")],
    tokenizer: Tokenizer,
    text_field: TextField = "text",
    skip_null: SkipNull = False,
    max_document_mebibytes: MostMebibytes = 32,
    holdout: Holdout = 0.0,
    holdout_out: HoldoutOut = None,
    pack: Pack = "concat",
    sequence_length: RowTokens = None,
    dedup: Dedup = "none",
    near_similarity: Similarity = 0.8,
    min_characters: Shortest = 0,
    max_characters: Longest = None,
    max_repetition: Repetition = None,
    language: Languages = None,
    block_tokens: BlockTokens = 1 << 18,
    shard_mebibytes: ShardMebibytes = 256,
    workers: Workers = 0,
    gigatoken: Gigatoken = False,
) -> None:
    """Tokenise text into shards that a run reads.

    Reads JSON lines, csv, tsv and text (also .gz, .zst, .xz, .bz2, .lz4), parquet, arrow, folders of save_to_disk,
    datasets of the Hugging Face Hub, and tokens of Megatron-LM (.idx and .bin); says what each file was read as. A file
    of text is one document. Killed and run again, it resumes; the result does not depend on the number of workers.

    \b
    megatrain data prepare corpus/*.jsonl.zst --out data/web --tokenizer data/tokenizer
    megatrain data prepare 'src/**/*.py' --out data/code --tokenizer data/tokenizer \\
        --holdout 0.01 --holdout-out data/validation
    megatrain data prepare 'hub:allenai/c4?subset=en' --out data/c4 --tokenizer data/tokenizer \\
        --pack best_fit --sequence-length 4096 --dedup near --language en --min-characters 200
    """
    from megatrain.data.preparation import prepare as preparation

    options = preparation.PrepareOptions(
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
        selection=_selection(dedup, near_similarity, min_characters, max_characters, max_repetition, language),
        workers=workers or len(os.sched_getaffinity(0)),
        gigatoken=gigatoken,
    )
    _tell([folder for folder in (out, holdout_out) if folder], preparation.prepare(options, sys.stderr))


def _selection(
    dedup: str,
    near_similarity: float,
    shortest: int,
    longest: int | None,
    repetition: float | None,
    languages: list[str] | None,
) -> "SelectionPolicy":
    from megatrain.data.preparation.selection import SelectionPolicy

    if dedup not in ("none", "exact", "near"):
        raise ConfigError(f"--dedup: {dedup}: must be none, exact or near")
    return SelectionPolicy(
        minimum_characters=shortest,
        maximum_characters=longest,
        maximum_repetition=repetition,
        languages=tuple(languages or ()),
        duplicates="keep" if dedup == "none" else dedup,  # type: ignore[arg-type]
        near_similarity=near_similarity,
    )


def _tell(folders: list[Path], manifests: "list[Manifest]") -> None:
    from megatrain.data.checks.inspection import packing_lines

    if manifests[0].left_out:
        left_out = (f"{count:,} {reason.replace('_', ' ')}" for reason, count in manifests[0].left_out.items())
        say(f"dropped: {', '.join(left_out)}")
    for folder, manifest in zip(folders, manifests, strict=True):
        say("\n".join([_summary(folder, manifest), *(f"  {line}" for line in packing_lines(manifest))]))


def _summary(folder: Path, manifest: "Manifest") -> str:
    return f"{folder}: {manifest.tokens:,} tokens, {manifest.documents:,} documents, {len(manifest.shards)} shards"
