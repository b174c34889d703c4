"""A section with what follows from its configuration. No torch: a process of its own builds the model, without memory.

The table of another family is written down; this one is read from the parameters of the class that `transformers` has.
Its import takes seconds, and what it does with a configuration is its own affair: the launcher asks once and keeps the
answer in the resolved run, from where every rank, checkpoint and export has it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatrain.base.errors import ConfigError
from megatrain.base.files import parse_json, parse_model, read_bytes
from megatrain.base.types import AUTO
from megatrain.model.families.transformers.section import TransformersSection
from megatrain.model.huggingface_config import CONFIG_LIMIT

_DESCRIBE = "megatrain.model.families.transformers.describe"
_SECONDS = 300
_LONGEST = 1 << 40  # tokens, where a configuration names no limit


def complete(section: TransformersSection, *, from_seed: bool) -> TransformersSection:
    """Describe the model, unless the section has it already.

    Args:
        from_seed: weights are to be drawn.

    Raises:
        ConfigError: the configuration cannot be read; transformers cannot make a causal language model of it, or one
            that cannot be trained here; or its weights cannot be drawn.
    """
    if section.description is None:
        where = section.path or "model.configuration"
        said = _read(section.path) if section.path is not None else section.configured
        section = described(said, where, vocabulary=section.vocab_size)
    strange = [weight.name for weight in section.described.weights if weight.init is None]
    if from_seed and strange:
        raise ConfigError(
            f"model.configuration: {section.configured['model_type']}: transformers begins {strange[0]} "
            f"({len(strange)} weights of this kind) in a way that cannot be drawn part by part, the same for every "
            "layout. Start a fine-tuning from pretrained weights."
        )
    return section


def read_config(file: Path, model_type: str) -> tuple[TransformersSection, int]:
    """The model of a config.json, and the longest sequence that it was made for, in tokens.

    Raises:
        ConfigError: see `complete`.
    """
    section = described(_read(str(file)), str(file))
    return section, section.max_position_embeddings or _LONGEST


def described(said: Mapping[str, Any], where: str, vocabulary: int | str = AUTO) -> TransformersSection:
    """A section in which nothing is open.

    Args:
        vocabulary: its rows, where the configuration says nothing of them.

    Raises:
        ConfigError: see `complete`.
    """
    wanted = {name: value for name, value in said.items() if name not in _LEFT_OUT}
    says = wanted.get("vocab_size")
    if vocabulary not in (AUTO, says) and says is not None:
        raise ConfigError(f"model.vocab_size: {vocabulary}: {where} says {says}. Leave one of them out.")
    if vocabulary != AUTO:
        wanted["vocab_size"] = vocabulary
    if said.get("quantization_config") or said.get("compression_config"):
        raise ConfigError(f"{where}: quantization_config: quantized weights are not trained. Take the original model.")
    text = json.dumps(wanted, sort_keys=True)
    found = json.loads(_answer(text, where))
    if "error" in found:
        raise ConfigError(f"{where}: {found['error']}")
    return parse_model(TransformersSection, {"configuration": text, **found}, where, ConfigError)


# Facts of a file and of code, none of the architecture; and names of code that must not be fetched or picked.
_LEFT_OUT = (
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
    "attn_implementation",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)


def _read(path: str) -> dict[str, Any]:
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    value = parse_json(read_bytes(file, limit=CONFIG_LIMIT, error=ConfigError), file, ConfigError)
    if not isinstance(value, dict) or not isinstance(value.get("model_type"), str):
        raise ConfigError(f"{file}: model_type: is missing: which architecture it is")
    return value


@lru_cache(16)
def _answer(configuration: str, where: str) -> str:
    """Of `describe.py`: a JSON object of the section's fields, or one with "error"."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        process = subprocess.run(
            [sys.executable, "-m", _DESCRIBE],
            input=configuration,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{where}: building the model without memory takes more than {_SECONDS} s") from None
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"{where}: transformers cannot build this model: {last[:500]}")
    return process.stdout
