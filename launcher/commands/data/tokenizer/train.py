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
    special_token: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="one more that texts do not hold, such as [MASK]; repeatable"),
    ] = None,
) -> None:
    """Train a byte-level BPE. The folder opens with transformers' AutoTokenizer, too.

    \b
    megatrain data tokenizer train 'corpus/*.jsonl' --out data/tokenizer --vocab-size 32768
    megatrain data tokenizer train 'corpus/*.jsonl' --out data/tokenizer --special-token '[MASK]'  # for task masked_lm
    """
    from megatrain.data.text.tokenizer import train_tokenizer

    trained = train_tokenizer(inputs, out, vocab_size, text_field=text_field, special_tokens=special_token or ())
    say(f"{out}: {trained.vocab_size:,} tokens; end of document: id {trained.eos_id}, padding: id {trained.pad_id}")
