"""`megatrain grow`."""

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.options import existing
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import complain, say


def grow(
    base: Annotated[Path, typer.Argument(help="a run, a checkpoint, or a model in Hugging Face's format")],
    out: Annotated[Path, typer.Argument(help="a new folder", metavar="FOLDER")],
    token: Annotated[list[str] | None, typer.Option(help="to add; may be given again")] = None,
    tokens_file: Annotated[Path | None, typer.Option(help="tokens to add, one per line", metavar="FILE")] = None,
    start: Annotated[str, typer.Option(help="rows begin as the mean of those of its pieces, or of all")] = "pieces",
    special: Annotated[bool, typer.Option(help="that `skip_special_tokens` leaves out of a text")] = True,
    dtype: Annotated[str, typer.Option(help="of a run's weights: bfloat16, float16 or float32")] = "float32",
) -> None:
    """Write a model with tokens added, to fine-tune from: its embedding, head and tokenizer grow.

    Example: megatrain grow models/Llama-2-7b models/with-tools --token '<|tool|>' --token '<|end_tool|>'
    """
    from megatrain.huggingface import export as exporting
    from megatrain.huggingface import grown
    from megatrain.huggingface.config_json import is_pretrained

    existing(base)
    tokens = [*(token or ()), *(_lines(existing(tokens_file)) if tokens_file is not None else ())]
    if not tokens:
        raise ConfigError("--token: is missing. Give the tokens to add, or --tokens-file FILE")
    if start not in grown.STARTS:
        raise ConfigError(f"--start {start}: must be one of {', '.join(grown.STARTS)}")
    if dtype not in exporting.DTYPES:
        raise ConfigError(f"--dtype {dtype}: must be one of {', '.join(exporting.DTYPES)}")
    if is_pretrained(base):
        done = grown.grow(base, out, tokens, start=start, special=special)
    else:
        with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".grow-") as folder:
            plain = Path(folder) / "plain"
            report, warn = partial(say, file=sys.stderr), partial(complain, kind="warning")
            exporting.export(base, plain, dtype=dtype, report=report, warn=warn)
            done = grown.grow(plain, out, tokens, start=start, special=special)
    said = ", ".join(f"{name!r} ({number})" for name, number in list(done.ids.items())[:8])
    more = f" and {len(done.ids) - 8} more" if len(done.ids) > 8 else ""
    say(f"{out}: {said}{more}; {done.rows:,} rows in {done.tensors} tensors, before {done.before:,}")
    say(f"fine-tune it: finetune.base={out}")


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
