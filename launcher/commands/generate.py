"""`megatrain generate`."""

from functools import partial
from typing import Annotated

import typer

from launcher.commands.options import RunOrCheckpoint, existing
from megatrain.base.terminal import complain, say


def generate(
    path: RunOrCheckpoint,
    prompt: Annotated[str, typer.Argument()],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token")] = 0.8,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Continue a text with a trained model.

    Example: megatrain generate runs/llama-125m "The purpose of" --temperature 0
    """
    from megatrain.generate import generate as continue_text

    existing(path)
    warn = partial(complain, kind="warning")
    say(continue_text(path, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, warn=warn))
