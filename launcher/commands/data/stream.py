"""`megatrain data stream`: the samples of a run, one by one, without training."""

from pathlib import Path
from typing import Annotated, Any

import typer

from megatrain.base.errors import ConfigError
from megatrain.base.terminal import printable_json, say

_TEXT_SHOWN = 100  # characters of a line that is not JSON


def stream(
    file: Annotated[Path, typer.Argument(help="a run's configuration, or its folder", metavar="FILE")],
    overrides: Annotated[list[str] | None, typer.Argument(help="fields to set", metavar="[KEY=VALUE]...")] = None,
    start: Annotated[int | None, typer.Option(min=0, help="first sample")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="samples to show; default: to the end of a step")] = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="the samples of an optimizer step, as metrics count it")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="data-parallel ranks; each sample says which reads it")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="only this rank's samples, in its order")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object per line")] = False,
    text: Annotated[bool, typer.Option("--text", help="decode the tokens, too")] = False,
) -> None:
    """Show what a run sees, sample by sample: where each lies, its tokens and their hash.

    The order is that of the configuration; the stream is the same for any number of ranks.

    \b
    megatrain data stream runs/llama-1b --step 5120 --text          # the batch behind a loss spike
    megatrain data stream run.yaml --start 1000000 --count 512 --json | jq -r .hash | sha256sum
    megatrain data stream run.yaml run.seed=7 --step 1 --ranks 64 --rank 3
    """
    from megatrain.base.progress import Progress
    from megatrain.checkpoint.progress import saved_progress
    from megatrain.config import PretrainConfig
    from megatrain.config.file import load_config, load_own_config
    from megatrain.data.checks.inspect_samples import audit
    from megatrain.run.directory import RunDir

    if start is not None and step is not None:
        raise ConfigError("--start and --step: give one of them; a step says where it starts.")
    if rank is not None and (ranks is None or rank >= ranks):
        raise ConfigError(f"--rank {rank}: must be below --ranks ({ranks}).")
    config = (
        load_own_config(file / "config.yaml", overrides or []) if file.is_dir() else load_config(file, overrides or [])
    )
    if not isinstance(config, PretrainConfig):
        raise ConfigError(f"{file}: is a fine-tuning run; its examples are in finetune.train.")
    sizes = config.training.batch_sizes
    progress = saved_progress(RunDir(file)) if file.is_dir() else Progress()
    # where a step of these batch sizes begins
    begin = 0 if sizes.after(0, progress.step) == progress.samples else progress.samples
    if step is not None:
        start = begin = progress.samples_at(step - 1, sizes)
        size, batch = progress.samples_at(step, sizes) - start, sizes.at(start)
        if size != batch and ranks is not None:
            raise ConfigError(f"--ranks: step {step:,} had a global batch of {size}, and {file} now has {batch}.")
        count = count or size
    start = start or 0
    stop = start + count if count is not None else sum(sizes.step_of(start, begin))
    for sample in audit(config, start, stop, ranks=ranks, rank=rank, first_of_step=begin, with_text=text):
        say(printable_json(sample) if as_json else _line(sample))


def _line(sample: dict[str, Any]) -> str:
    rank = f" · rank {sample['rank']}" if "rank" in sample else ""
    where = f"{sample['source']} · {sample['shard']} · block {sample['block']} row {sample['row']}"
    shown = f"sample {sample['position']:,} · phase {sample['phase']} · epoch {sample['epoch']} · {where}{rank}"
    if "replaced" in sample:
        shown += f" · stands in for block {sample['replaced']}"
    shown += f" · {len(sample['tokens'])} tokens · {sample['hash']}"
    if "text" in sample:
        text = sample["text"]
        shown += "\n  " + printable_json(text if len(text) <= _TEXT_SHOWN else text[:_TEXT_SHOWN] + "…")
    return shown
