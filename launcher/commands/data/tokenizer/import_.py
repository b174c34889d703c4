"""`megatrain data tokenizer import`."""

from pathlib import Path
from typing import Annotated

import typer

from megatrain.base.terminal import say


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
