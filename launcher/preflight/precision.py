"""What `training.precision: fp8` needs besides hardware, which the planner asks for."""

from collections.abc import Iterator
from importlib.util import find_spec

from launcher.planning.hardware import load_hardware
from launcher.preflight.finding import Finding
from megatrain.base.errors import ConfigError, ExitCode
from megatrain.config import Config


def check_precision(config: Config) -> Iterator[Finding]:
    if config.training.precision != "fp8":
        return
    if find_spec("torchao") is None:
        text = "training.precision: fp8: torchao is not installed. Try pip install 'megatrain[fp8]', or bf16."
        yield Finding("error", text, ExitCode.USAGE)
    try:
        hardware = load_hardware(config.cluster.hardware, config.cluster.gpus_per_node)
    except ConfigError:
        return  # said by the planner
    if hardware.device == "cpu":
        text = "training.precision: fp8: emulated on a CPU: the same roundings, and slower than bf16 or fp32."
        yield Finding("warning", text)
