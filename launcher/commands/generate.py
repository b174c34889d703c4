"""`megatrain generate`."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.options import RunOrCheckpoint, existing
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import complain, printable_json, say

if TYPE_CHECKING:
    from megatrain.generate import Writer


def generate(
    path: RunOrCheckpoint,
    prompt: Annotated[str | None, typer.Argument(help="default, with --chat: a conversation, turn by turn")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="prompts, a row each with a field `prompt`; prints jsonl with `prompt` and `response`"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="only so many of the likeliest tokens; 0: all")] = 50,
    top_p: Annotated[float, typer.Option(help="only the likeliest that have this probability together")] = 1.0,
    min_p: Annotated[float, typer.Option(help="only what is this times as likely as the likeliest")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="above 1: what was there before is less likely")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="a text that ends the answer; may be given again")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="through the tokenizer's chat template")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="prompts of --file at once")] = 8,
) -> None:
    """Continue a text with a trained model.

    Example: megatrain generate runs/llama-125m "The purpose of" --temperature 0

    Example: megatrain generate runs/assistant --chat

    Example: megatrain generate runs/llama-125m --file prompts.jsonl > answers.jsonl
    """
    from megatrain.generate import Writer
    from megatrain.generation.prompt_file import read_prompts
    from megatrain.generation.sampling import Sampling

    existing(path)
    if prompt is not None and file is not None:
        raise ConfigError("PROMPT and --file: give one of them")
    if prompt is None and file is None and not chat:
        raise ConfigError("PROMPT: is missing. Give a text, --file FILE, or --chat for a conversation")
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k or None,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    prompts = None if file is None else read_prompts(existing(file))
    warn = partial(complain, kind="warning")
    writer = Writer(path, sampling, max_new_tokens=max_new_tokens, stops=stop or (), seed=seed, warn=warn)
    if prompts is not None:
        answers = writer.answers(prompts, chat=chat, batch_size=batch_size)
        for (_, text), answer in zip(prompts, answers, strict=True):
            say(printable_json({"prompt": text, "response": answer}), flush=True)
    elif prompt is not None:
        say(writer.answer([{"role": "user", "content": prompt}]) if chat else writer.continued_text(prompt))
    else:
        talk(writer)


def talk(writer: "Writer") -> None:
    """Turn by turn, each line of standard input what a user says, until it ends."""
    messages: list[dict[str, str]] = []
    while True:
        if sys.stdin.isatty():
            say("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line.strip()})
        answer = writer.answer(messages)
        messages.append({"role": "assistant", "content": answer})
        say(answer, flush=True)
