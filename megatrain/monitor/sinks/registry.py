"""What a sink registers, without torch."""

from dataclasses import dataclass

from megatrain.base.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkSpec:
    """A sink that `monitor.sinks` can name.

    Attributes:
        sink: "package.module:Class" of a `megatrain.monitor.sinks.base.Sink`, made on rank 0 only.
    """

    sink: str


SINKS: Registry[SinkSpec] = Registry("sink")

SINKS.register("tensorboard", SinkSpec(sink="megatrain.monitor.sinks.tensorboard:TensorBoard"))
