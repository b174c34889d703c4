"""`megatrain data plan`."""

import json

from launcher.commands.options import File, Json, Overrides, load
from megatrain.base.errors import ConfigError, DataError
from megatrain.base.terminal import say


def plan(
    file: File,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Show what a run reads of each source in each stage; exits with 4 where that is more than data.max_epochs.

    \b
    megatrain data plan configs/llama-125m.yaml
    megatrain data plan configs/llama-125m.yaml training.tokens=5e9 --json
    """
    from launcher.preflight.data_plan import plan_data
    from megatrain.config import PretrainConfig

    config = load(file, overrides)
    if not isinstance(config, PretrainConfig):
        raise ConfigError(f"{file}: a fine-tuning reads prompts and responses, not prepared sources.")
    found = plan_data(config)
    say(json.dumps(found.to_json()) if as_json else found.as_text())
    if refusals := [*found.refusals()]:
        raise DataError("\n".join(refusals))
