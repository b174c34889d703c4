"""`megatrain data tokenizer train`."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.options import Inputs, TextField
from megatrain.base.terminal import say


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
