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
    average_last: Annotated[int, typer.Option(min=1, max=1000, help="the mean of so many last checkpoints")] = 1,
    adapter: Annotated[bool, typer.Option("--adapter", help="the adapter alone, as PEFT stores it")] = False,
) -> None:
    """Write a folder that Hugging Face's libraries load: safetensors, config.json and the tokenizer.

    An adapter is merged into the weights of its base, unless --adapter asks for it alone.

    With --average-last, the fp32 mean of the weights of the last checkpoints that verify: of a run, or of a checkpoint
    and those before it. The run keeps as many as checkpoint.keep_last says.

    Example: megatrain export runs/llama-125m exported/llama-125m --dtype float32

    Example: megatrain export runs/llama-125m exported/averaged --average-last 3

    Example: megatrain export runs/lora exported/lora --adapter
    """
    from megatrain.base.formatting import gib, quantity
    from megatrain.huggingface import export as exporting

    existing(path)
    if dtype not in exporting.DTYPES:
        raise ConfigError(f"--dtype {dtype}: must be one of {', '.join(exporting.DTYPES)}")
    if adapter:
        if average_last > 1:
            raise ConfigError("--average-last: the mean of adapters is no adapter of their rank. Leave --adapter out.")
        _adapter(path, out, dtype)
        return
    done = exporting.export(
        path,
        out,
        dtype=dtype,
        shard_bytes=round(shard_gb * 1e9),
        average_last=average_last,
        report=partial(say, file=sys.stderr),
        warn=partial(complain, kind="warning"),
    )
    of = f"the mean of {done.averaged} checkpoints up to {done.checkpoint}" if done.averaged > 1 else done.checkpoint
    say(
        f"{done.folder}: {quantity(done.parameters)} parameters in {dtype}, {gib(done.bytes)}, "
        f"of {of}\n"
        f"load it: transformers.{done.auto_class}.from_pretrained({str(done.folder)!r})"
    )


def _adapter(path: Path, out: Path, dtype: str) -> None:
    from megatrain.huggingface.export_adapter import export_adapter

    checkpoint, base = export_adapter(path, out, dtype=dtype)
    say(
        f"{out}: the adapter of {checkpoint}, in {dtype}\n"
        f"load it: peft.PeftModel.from_pretrained(model, {str(out)!r}), of the model of {base}"
    )
