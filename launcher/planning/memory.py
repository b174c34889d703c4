"""Bytes on one rank at the peak of a run's start and steps: DeepSpeed's share (zero.py) and the model's
(activations.py), put together at each moment that can be the peak."""

from dataclasses import dataclass, replace

from launcher.planning import factors
from launcher.planning.activation_offload import pinned_bytes
from launcher.planning.activations import activation_bytes
from launcher.planning.hardware import GIB, Hardware
from launcher.planning.layout import Layout
from launcher.planning.matrices import buffer_bytes
from launcher.planning.offload import HostBytes, device_bytes, host_bytes
from launcher.planning.trained import trained_layers, trained_parameters
from launcher.planning.zero import ZeroBytes, first_and_embedding
from megatrain.config import ModelSection

FRAGMENTATION = 0.05  # of all but parameters and optimizer state, which are allocated once
USABLE = 0.94  # of the device's memory: a plan that needs more does not fit
HOST_USABLE = 0.8  # of the host's memory: data, caches and processes need some
_PROCESS = {"cuda": 2.0 * GIB, "rocm": 2.0 * GIB, "cpu": 0.7 * GIB}  # context and NCCL buffers; or Python and torch


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes on each rank at the peak, by what they are of."""

    peak: str  # the moment: "forward", "head", "backward", "bucket", "last block", "reduce", "step" or "start"
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int  # the vocabulary projection's: a chunk of logits, and the gradients that it makes at once
    buffers: int  # buckets, gathered parameters, copies
    process: int
    margin: int  # for fragmentation
    host: int = 0  # of the host's memory, beside what every process takes there; a CPU rank's is all in `total`

    @property
    def other(self) -> int:
        return self.logits + self.buffers + self.process + self.margin

    @property
    def tensors(self) -> int:
        """What the run itself allocates: all but the process and the margin."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits + self.buffers

    @property
    def total(self) -> int:
        return self.tensors + self.process + self.margin

    def to_json(self) -> dict[str, int]:
        parts = ("parameters", "gradients", "optimizer", "activations", "other", "total")
        return {part: getattr(self, part) for part in parts} | ({"host": self.host} if self.host else {})

    def other_to_json(self) -> dict[str, int]:
        return {part: getattr(self, part) for part in ("logits", "buffers", "process", "margin")}


def estimate_memory(
    model: ModelSection,
    layout: Layout,
    *,
    sequence_length: int,
    precision: str,
    hardware: Hardware,
    compiled: bool = False,
) -> MemoryEstimate:
    """What one rank needs; see `fits`."""
    layout = layout.with_passes
    zero, host = device_bytes(model, layout, precision), host_bytes(model, layout, precision)
    inputs = pinned_bytes(model, layout, sequence_length, precision)  # of blocks
    if hardware.device == "cpu":
        zero, host, inputs = _on_one_memory(zero, host), HostBytes(), 0.0
    act = activation_bytes(
        model,
        layout,
        sequence_length=sequence_length,
        precision=precision,
        device=hardware.device,
        compiled=compiled,
    )
    earlier = 1 - first_and_embedding(model, layout.tensor_parallel) / trained_parameters(model, layout.tensor_parallel)
    updating = buffer_bytes(model, layout, hardware.device) + factors.updating_bytes(model, layout)
    # moment: gradients, activations, logits, buffers
    moments = {
        "forward": (zero.held, act.kept, act.head_gradients + act.logits, zero.gathered + zero.in_forward),
        "head": (zero.held, act.kept, act.head_gradients + act.head_backward, zero.gathered + zero.in_forward),
        "backward": (zero.held, act.in_backward(0), 0.0, zero.gathered + zero.in_backward),
        "bucket": (zero.held, act.in_backward(zero.late_after), 0.0, zero.gathered + zero.late_in_backward),
        "last block": (
            max(zero.held, zero.made * earlier if layout.zero_stage < 2 else 0),
            act.in_backward(max(0, trained_layers(model) - 1)),
            0.0,
            zero.gathered + zero.late_in_backward,
        ),
        "reduce": (max(zero.held, zero.made), 0.0, 0.0, zero.gathered + zero.reducing),
        "step": (0.0, 0.0, 0.0, zero.stepping + updating),
        "start": (0.0, 0.0, 0.0, zero.starting),
    }
    peak = max(moments, key=lambda moment: sum(moments[moment]))
    gradients, activations, logits, buffers = moments[peak]
    return MemoryEstimate(
        peak=peak,
        parameters=round(zero.parameters),
        gradients=round(zero.gradients + gradients),
        optimizer=round(zero.optimizer + factors.factor_bytes(model, layout.optimizer.name)),
        activations=round(activations),
        logits=round(logits),
        buffers=round(zero.buckets + buffers),
        process=round(_PROCESS[hardware.device]),
        host=round(host.peak + inputs),
        margin=round(FRAGMENTATION * (zero.gradients + gradients + activations + logits + zero.buckets + buffers)),
    )


def _on_one_memory(zero: ZeroBytes, host: HostBytes) -> ZeroBytes:
    """Of a rank whose device is the host; nothing is pinned there."""
    starting = max(host.starting, zero.starting - host.standing)
    return replace(zero, optimizer=zero.optimizer + host.standing, starting=starting)


def host_usable(hardware: Hardware) -> float:
    """Bytes of the host's memory that a rank can have."""
    return HOST_USABLE * hardware.host.memory_gib * GIB if hardware.host is not None else 0.0


def fits(memory: MemoryEstimate, hardware: Hardware) -> bool:
    return memory.total <= USABLE * hardware.memory_bytes and memory.host <= host_usable(hardware)
