"""What a core of this machine multiplies, in bf16 and in fp32: measured once per processor and torch, then remembered.

A profile of a CPU says `auto` for these figures, since they differ by more than four times between common processors.
"""

import hashlib
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from launcher.installation import python_path
from megatrain.base.errors import MegatrainError, PreflightError
from megatrain.base.files import parse_json, parse_model, read_model, write_json
from megatrain.base.types import Positive

CACHE_VARIABLE = "MEGATRAIN_CACHE"  # where figures are remembered; default: ~/.cache/megatrain
_TIMEOUT = 120
_LIMIT = 4096  # bytes of a remembered measurement


class Rates(BaseModel):
    """FLOP/s of one core in a large product."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    bf16: Positive
    fp32: Positive


@cache
def rates() -> Rates:
    """The rates of this machine: remembered, or measured now (2 seconds, most of them torch's import).

    Raises:
        PreflightError: torch cannot be run here.
    """
    remembered = remembered_file()
    if remembered is not None and remembered.is_file():
        with suppress(MegatrainError):  # damaged, or of another version: measured anew, and replaced
            return read_model(remembered, Rates, error=PreflightError, limit=_LIMIT)
    measured = _measure()
    if remembered is not None:
        with suppress(OSError):  # a home that is full or read-only: the next command measures again
            write_json(remembered, measured.model_dump())
    return measured


def remembered_file() -> Path | None:
    """Named by all that the figures depend on; None where there is no home."""
    folder = os.environ.get(CACHE_VARIABLE) or os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(folder) if folder else Path.home() / ".cache"
    except RuntimeError:
        return None
    if CACHE_VARIABLE not in os.environ:
        root /= "megatrain"
    identity = "\n".join((*_processor(), _torch_version(), platform.machine()))
    return root / f"processor-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


def _processor() -> tuple[str, str]:
    """Its name, and the instructions that it has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor(), ""
    fields: dict[str, str] = dict(re.findall(r"^(model name|CPU part|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    return (
        fields.get("model name", fields.get("CPU part", "")),
        fields.get("flags", fields.get("Features", "")),
    )


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _measure() -> Rates:
    command = [sys.executable, "-P", "-m", "megatrain.hardware.processor"]
    problem = "cluster.hardware: this machine's cores cannot be measured"
    fix = "Name a profile with figures of its own (`megatrain plan our-node.yaml --calibrate` writes one)."
    try:
        environment = {**os.environ, "PYTHONPATH": python_path()}
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PreflightError(f"{problem}: {error}. {fix}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PreflightError(f"{problem}: {last}. {fix}")
    lines = done.stdout.strip().splitlines() or [""]
    return parse_model(Rates, parse_json(lines[-1], problem, PreflightError), problem, PreflightError)
