"""`training.precision: auto`: what the hardware multiplies fastest."""

from typing import Literal

from launcher.planning.hardware import Hardware, load_hardware
from megatrain.base.errors import ConfigError, MegatrainError
from megatrain.config import AUTO, Config
from megatrain.config.file import load_own_config
from megatrain.config.training import Precision
from megatrain.run.directory import RunDir


def with_precision(config: Config) -> Config:
    """The same run with its precision decided. A run that has started keeps the one it has.

    Raises:
        ConfigError: there is no such hardware profile.
        PreflightError: this machine's cores cannot be measured.
    """
    if config.training.precision != AUTO:
        return config
    precision = _earlier(config) or fastest(load_hardware(config.cluster.hardware, config.cluster.gpus_per_node))
    return config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})


def check_hardware_precision(precision: str, hardware: Hardware) -> None:
    """
    Raises:
        ConfigError: a GPU that does not multiply in it; a CPU emulates fp8.
    """
    if precision == "fp8" and hardware.device != "cpu" and hardware.fp8_tflops is None:
        raise ConfigError(f"training.precision: fp8: {hardware.name} does not multiply in fp8. Try bf16.")


def fastest(hardware: Hardware) -> Literal["bf16", "fp32"]:
    """bf16 where it is the faster: on every GPU with tensor cores, and on processors that have instructions for it."""
    return "bf16" if hardware.bf16_tflops > hardware.fp32_tflops else "fp32"


def _earlier(config: Config) -> Precision | None:
    """Of the starts of this run before."""
    written = RunDir(f"{config.run.directory}/{config.run.name}").config
    try:
        earlier = load_own_config(written).training.precision if written.is_file() else AUTO
    except (MegatrainError, OSError, ValueError):
        return None  # said by the preflight, which reads the same file
    return None if earlier == AUTO else earlier
