"""`megatrain export`."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.commands.options import RunOrCheckpoint, existing
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import complain, say

if TYPE_CHECKING:
    from megatrain.huggingface.compression import Compression
    from megatrain.huggingface.export import Exported


def export(
    path: RunOrCheckpoint,
    out: Annotated[Path, typer.Argument(help="a new folder", metavar="FOLDER")],
    dtype: Annotated[str, typer.Option(help="of the weights: bfloat16, float16 or float32")] = "bfloat16",
    shard_gb: Annotated[float, typer.Option(min=0.001, help="the most that one file of weights takes")] = 5.0,
    average_last: Annotated[int, typer.Option(min=1, max=1000, help="the mean of so many last checkpoints")] = 1,
    quantize: Annotated[
        str | None, typer.Option(help="store hidden matrices as int8, int4 or fp8, by torchao", metavar="int8|int4|fp8")
    ] = None,
    prune: Annotated[
        str | None, typer.Option(help="make zeros of hidden matrices' smallest values", metavar="magnitude:SHARE|2:4")
    ] = None,
    measure: Annotated[bool, typer.Option(help="of --quantize and --prune: evaluate before and after")] = True,
    measure_on: Annotated[
        list[str] | None, typer.Option(help="examples or prepared data; default: the run's validation", metavar="FILE")
    ] = None,
    average: Annotated[
        list[Path] | None, typer.Option(help="a run or checkpoint to average with; may be given again", metavar="RUN")
    ] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="the adapter alone, as PEFT stores it")] = False,
) -> None:
    """Write a folder that Hugging Face's libraries load: safetensors, config.json and the tokenizer.

    An adapter is merged into the weights of its base, unless --adapter asks for it alone.

    With --average-last, the fp32 mean of the weights of the last checkpoints that verify: of a run, or of a checkpoint
    and those before it. The run keeps as many as checkpoint.keep_last says. With --average, the mean over runs.

    With --quantize or --prune, the task's metrics before and after are printed, and kept in README.md of the folder.

    Example: megatrain export runs/llama-125m exported/llama-125m --dtype float32

    Example: megatrain export runs/llama-125m exported/averaged --average-last 3

    Example: megatrain export runs/llama-125m exported/llama-125m-int8 --quantize int8

    Example: megatrain export runs/seed-1 exported/soup --average runs/seed-2 --average runs/seed-3

    Example: megatrain export runs/lora exported/lora --adapter
    """
    from megatrain.huggingface import export as exporting
    from megatrain.huggingface.compression import Compression

    if dtype not in exporting.DTYPES:
        raise ConfigError(f"--dtype {dtype}: must be one of {', '.join(exporting.DTYPES)}")
    for one in (path, *(average or ())):
        existing(one)
    compression = Compression.from_options(quantize, prune)
    if measure_on and not (compression and measure):
        raise ConfigError("--measure-on: is of --quantize and --prune, and not with --no-measure")
    if average and average_last > 1:
        raise ConfigError("--average: and --average-last are two kinds of mean. Leave one of them out.")
    if adapter:
        _refuse_with_adapter(compression, average_last > 1 or bool(average))
        _adapter(path, out, dtype)
    else:
        means = {"average_last": average_last, "average_with": average or ()}
        options = {"dtype": dtype, "shard_bytes": round(shard_gb * 1e9), **means}
        _whole(path, out, compression, measure_on or (), measure, options)


def _whole(
    path: Path, out: Path, compression: "Compression", files: Sequence[str], measure: bool, options: dict[str, Any]
) -> None:
    options |= {"report": partial(say, file=sys.stderr), "warn": partial(complain, kind="warning")}
    if compression:
        from megatrain.evaluation.compressed import export_compressed

        made = export_compressed(path, out, compression, files=files, measure=measure, **options)
        _say(made.exported, options["dtype"])
        say("\n".join([f"{compression}: {made.matrices} matrices, {made.zeros:.1%} zeros", *made.lines()]))
    else:
        from megatrain.huggingface.export import export as write

        _say(write(path, out, **options), options["dtype"])


def _say(done: "Exported", dtype: str) -> None:
    from megatrain.base.formatting import gib, quantity

    of = str(done.checkpoint)
    if len(done.averaged) > 1:
        one_run = len({folder.parent for folder in done.averaged}) == 1
        others = ", ".join(map(str, done.averaged[1:]))
        of = f"the mean of {len(done.averaged)} checkpoints " + (f"up to {of}" if one_run else f"{of}, {others}")
    say(
        f"{done.folder}: {quantity(done.parameters)} parameters in {dtype}, {gib(done.bytes)}, of {of}\n"
        f"load it: transformers.{done.auto_class}.from_pretrained({str(done.folder)!r})"
    )


def _refuse_with_adapter(compression: "Compression", averaged: bool) -> None:
    """Raises ConfigError."""
    if compression:
        raise ConfigError(
            f"{'--quantize' if compression.quantize else '--prune'}: an adapter is added to the whole weights of its "
            "base, and is not compressed. Leave --adapter out: then the merged model is"
        )
    if averaged:
        raise ConfigError("--average: the mean of adapters is no adapter of their rank. Leave --adapter out.")


def _adapter(path: Path, out: Path, dtype: str) -> None:
    from megatrain.huggingface.export_adapter import export_adapter

    checkpoint, base = export_adapter(path, out, dtype=dtype)
    say(
        f"{out}: the adapter of {checkpoint}, in {dtype}\n"
        f"load it: peft.PeftModel.from_pretrained(model, {str(out)!r}), of the model of {base}"
    )
