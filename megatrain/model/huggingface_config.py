"""Parts of a config.json of `transformers` that several families read. Nothing of it is trusted. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from megatrain.base.errors import ConfigError
from megatrain.base.files import parse_model
from megatrain.model.rope import SCALINGS, RopeScaling

CONFIG_LIMIT = 8 << 20  # bytes; such files have a few KiB
LONGEST = 1 << 40  # positions

Layers = Annotated[int, Field(ge=1, le=100_000)]
Width = Annotated[int, Field(ge=1, le=1 << 24)]  # of any dimension of a tensor
Positions = Annotated[int, Field(ge=1, le=LONGEST)]


class Part(BaseModel):
    """Of config.json. Fields that say nothing of the weights are skipped."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


def require(file: Path, found: Part, wanted: Mapping[str, Any], model_type: str) -> None:
    """Fields that decide what the architecture computes. null is as if it were not there, where the rest is yes or no.

    Raises:
        ConfigError: one is other than what megatrain has.
    """
    for field, value in wanted.items():
        given = getattr(found, field)
        if given != value and not (given is None and isinstance(value, bool)):
            text = f"is {given!r:.60}; megatrain has {model_type!r} with {value!r} only"
            raise ConfigError(f"{file}: {field}: {text}. Take a model that has it so.")


class _Rope(Part):
    rope_type: str | None = None
    type: str | None = None  # its name in older files
    rope_theta: float | None = None
    partial_rotary_factor: float = 1.0


def rope_theta(
    at_top: float | None, ropes: Mapping[str, dict[str, Any] | None], file: Path, default: float = 10000.0
) -> float:
    """It may stand in three places, by the version that wrote the file.

    Args:
        ropes: rope_parameters and rope_scaling, by those names.
        default: where none says it.

    Raises:
        ConfigError: they differ.
    """
    given = [parse_model(_Rope, rope, f"{file}: {name}", ConfigError).rope_theta for name, rope in _given(ropes)]
    found = {theta for theta in (at_top, *given) if theta is not None}
    if len(found) > 1:
        raise ConfigError(f"{file}: rope_theta: is {' and '.join(map(str, sorted(found)))}: make them the same")
    return found.pop() if found else default


def rope_scaling(ropes: Mapping[str, dict[str, Any] | None], file: Path) -> RopeScaling | None:
    """
    Raises:
        ConfigError: rope_parameters and rope_scaling differ, or are of a kind that megatrain has not.
    """
    found = [_scaling(rope, f"{file}: {name}") for name, rope in _given(ropes)]
    if any(scaling != found[0] for scaling in found):
        raise ConfigError(f"{file}: rope_scaling: differs from rope_parameters: make them the same")
    return found[0] if found else None


def _given(ropes: Mapping[str, dict[str, Any] | None]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, rope) for name, rope in ropes.items() if rope]


def _scaling(given: dict[str, Any], where: str) -> RopeScaling | None:
    rope = parse_model(_Rope, given, where, ConfigError)
    kind = rope.rope_type or rope.type or "default"
    if kind != "default" and kind not in SCALINGS:
        known = " and ".join(map(repr, ["default", *SCALINGS]))
        raise ConfigError(f"{where}.rope_type: is {kind!r:.60}; megatrain has {known}")
    if rope.partial_rotary_factor != 1:
        text = f"is {rope.partial_rotary_factor}; megatrain turns all channels of a head (1.0)"
        raise ConfigError(f"{where}.partial_rotary_factor: {text}")
    if kind == "default":
        return None
    for field in ("mscale", "mscale_all_dim"):
        if given.get(field):
            raise ConfigError(f"{where}.{field}: is {given[field]!r:.60}; megatrain has attention_factor only")
    section = SCALINGS[kind]
    values = {name: given[name] for name in section.model_fields if given.get(name) is not None} | {"rope_type": kind}
    # what Llama 3.1's configurations always say is not guessed
    needed = (
        section.model_fields if kind == "llama3" else [n for n, f in section.model_fields.items() if f.is_required()]
    )
    if missing := [name for name in needed if name not in values]:
        raise ConfigError(f"{where}.{missing[0]}: is missing")
    return parse_model(section, values, where, ConfigError)


def layer_types(file: Path, content: Part, known: tuple[str, ...], layers: int | None = None) -> tuple[str, ...] | None:
    """`layer_types` of a part that has them; `layers` of them, where that is given.

    Raises:
        ConfigError: megatrain has no such layers, or they are not as many.
    """
    found: list[str] | None = getattr(content, "layer_types", None)
    for layer in found or ():
        if layer not in known:
            text = f"has {layer!r:.60}; megatrain has {' and '.join(map(repr, known))}. Take a model of these."
            raise ConfigError(f"{file}: layer_types: {text}")
    if found and layers is not None and len(found) != layers:
        raise ConfigError(f"{file}: layer_types: has {len(found)} layers, num_hidden_layers is {layers}")
    return tuple(found) if found else None
