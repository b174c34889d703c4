"""`megatrain export`."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.options import RunOrCheckpoint, existing
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import complain, say


def export(
    path: RunOrCheckpoint,
    out: Annotated[Path, typer.Argument(help="a new folder", metavar="FOLDER")],
    dtype: Annotated[str, typer.Option(help="of the weights: bfloat16, float16 or float32")] = "bfloat16",
    shard_gb: Annotated[float, typer.Option(min=0.001, help="the most that one file of weights takes")] = 5.0,
) -> None:
    """Write a folder that Hugging Face's libraries load: safetensors, config.json and the tokenizer.

    Example: megatrain export runs/llama-125m exported/llama-125m --dtype float32
    """
    from megatrain.base.formatting import gib, quantity
    from megatrain.huggingface import export as exporting

    existing(path)
    if dtype not in exporting.DTYPES:
        raise ConfigError(f"--dtype {dtype}: must be one of {', '.join(exporting.DTYPES)}")
    done = exporting.export(
        path,
        out,
        dtype=dtype,
        shard_bytes=round(shard_gb * 1e9),
        report=partial(say, file=sys.stderr),
        warn=partial(complain, kind="warning"),
    )
    say(
        f"{done.folder}: {quantity(done.parameters)} parameters in {dtype}, {gib(done.bytes)}, "
        f"of {done.checkpoint}\n"
        f"load it: transformers.AutoModelForCausalLM.from_pretrained({str(done.folder)!r})"
    )
