"""`megatrain config schema`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.options import load
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import say

if TYPE_CHECKING:
    from pydantic import BaseModel

Kind = Annotated[
    str, typer.Argument(help="pretrain, finetune, or a file: of its kind", metavar="[pretrain|finetune|FILE]")
]


def schema(kind: Kind = "pretrain") -> None:
    """Print the JSON Schema of a file, for an editor to complete and check with.

    Example: megatrain config schema > megatrain.schema.json
    """
    from megatrain.config import FinetuneConfig, PretrainConfig

    kinds: dict[str, type[BaseModel]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
    if kind not in kinds and not Path(kind).is_file():
        raise ConfigError(f"config schema {kind}: must be pretrain or finetune, or a file.")
    chosen = kinds[kind] if kind in kinds else type(load(Path(kind), None))
    say(json.dumps(chosen.model_json_schema(), indent=2))
