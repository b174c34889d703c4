"""The kinds of values that a configuration's fields take, each with bounds within which the arithmetic of planner and
trainer holds: sums and products stay finite, time-outs are what the system can wait for.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

AUTO: Literal["auto"] = "auto"
_PATH_BYTES, _NAME_BYTES = 3500, 255  # PATH_MAX is 4,096, and a run writes below its folder; NAME_MAX
_MOST = 10**15  # of anything that is counted: no run is larger, and arithmetic stays quick
MOST_TOKENS = 10**9  # of a sequence
WIDEST = 10**7  # channels, heads


def _whole(value: Any) -> Any:
    """2.5e9 is a whole number to its writer, though a float to YAML."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def no_flag(value: Any) -> Any:
    """True equals 1, and would pass for it among literals."""
    return str(value).lower() if isinstance(value, bool) else value


def _fits_a_path(value: str) -> str:
    """An address, or a command, may be longer than what a file system takes."""
    if len(value.encode(errors="replace")) > _PATH_BYTES:
        raise ValueError(f"must have at most {_PATH_BYTES} bytes")
    is_address = "://" in value or value.startswith(("pipe:", "hub:"))
    if not is_address and any(len(part.encode(errors="replace")) > _NAME_BYTES for part in value.split("/")):
        raise ValueError(f"no name in a path can have more than {_NAME_BYTES} bytes")
    return value


Count = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=_MOST)]
NonNegative = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=_MOST)]
AutoCount = Annotated[Annotated[int, Field(ge=1, le=_MOST)] | Literal["auto"], BeforeValidator(_whole)]
Positive = Annotated[float, Field(gt=0)]
VocabularySize = Annotated[Annotated[int, Field(ge=1, le=10**9)] | Literal["auto"], BeforeValidator(_whole)]
Rate = Annotated[float, Field(ge=1e-6, le=1e9)]  # of hardware, in its usual unit: products and quotients stay finite
Seconds = Annotated[float, Field(ge=1e-3, le=86_400)]
Weight = Annotated[float, Field(ge=0, le=1e12)]  # so that sums stay finite
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Module = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=500)]  # package.module
Path = Annotated[str, Field(min_length=1), AfterValidator(_fits_a_path)]
# Minutes alone are a number to YAML.
WallTime = Annotated[
    str,
    BeforeValidator(lambda v: str(v) if type(v) is int else v),
    Field(pattern=r"^([0-9]{1,6}-)?[0-9]{1,8}(:[0-9]{1,2}){0,2}$"),
]
