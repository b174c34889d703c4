"""Of the preflight, a run that resumes: its own copies of what it took from elsewhere, and what lies there now."""

from collections.abc import Iterator
from pathlib import Path

from launcher.preflight.finding import Finding
from megatrain.base.errors import MegatrainError
from megatrain.config import Config, FinetuneConfig
from megatrain.data.text.tokenizer_files import tokenizer_file, tokenizer_sha256
from megatrain.run.directory import RunDir
from megatrain.run.inputs import kept_tokenizer_sha256, own_tokenizer


def check_own_copies(config: Config, run: RunDir) -> Iterator[Finding]:
    """They must be what was copied; another tokenizer at the path that is named in the configuration is not used."""
    if not run.steps():
        return
    try:
        own = own_tokenizer(run, verify=True)
        kept = kept_tokenizer_sha256(run)
    except MegatrainError as error:
        yield Finding("error", str(error), error.exit_code)
        return
    is_whole = config.model is None or not config.model.freezes  # else another finding says what is needed
    if isinstance(config, FinetuneConfig) and is_whole and not Path(config.finetune.base).exists():
        text = "is not there. The run has begun, and needs it no more."
        yield Finding("warning", f"finetune.base: {config.finetune.base}: {text}")
    if config.tokenizer is None:
        return
    path = config.tokenizer.path
    if own is None:
        if not tokenizer_file(path).exists():
            text = f"is not there, and {run} has no copy of it: `generate` and `export` will need it."
            yield Finding("warning", f"tokenizer.path: {path}: {text} Put its files into {run.tokenizer}.")
        return
    try:
        changed = tokenizer_file(path).exists() and kept is not None and tokenizer_sha256(path) != kept
    except MegatrainError:
        changed = True
    if changed:
        text = f"is not the tokenizer any more that {run} began with. The run resumes with its own copy, {own}."
        yield Finding("warning", f"tokenizer.path: {path}: {text}")
