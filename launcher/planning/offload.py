"""ZeRO-Offload: fp32 weights, optimizer state and the gradients of an update on the host, which makes the update too.

Read in DeepSpeed 0.19.8, and measured where host and device are the same memory (docs/planning.md). Offloading ZeRO-1
and -2 both run DeepSpeedZeroOptimizer, -3 runs DeepSpeedZeroOptimizer_Stage3. Symbols as in zero.py.
"""

from dataclasses import dataclass, replace

from launcher.planning.layout import Layout
from launcher.planning.matrices import state_bytes
from launcher.planning.trained import largest_trained, trained_parameters
from launcher.planning.zero import (
    ZeroBytes,
    first_and_embedding,
    largest_parameter,
    live_parameters,
    local_parameters,
    number_bytes,
    prefetch_bucket,
    reduce_bucket,
    releases_weights,
    second_copy,
    zero_bytes,
)
from megatrain.model.architecture import ModelSection

_MASTER = 4  # bytes of an fp32 weight, and of its gradient
# Bytes of host memory that updating a parameter moves beside its state: the gradient read and clipped (8) and read
# again (4), the weight read and written (8), and read and rounded (6) for the copy back.
_UPDATE_BYTES = 26


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBytes:
    """Bytes of host memory on one rank."""

    standing: float = 0.0
    pinned: float = 0.0  # of these; torch rounds each such allocation up to a power of two
    starting: float = 0.0  # beyond what stands later

    @property
    def peak(self) -> float:
        """As a GPU's host sees it: pinned memory at most doubles by rounding."""
        return self.standing + self.pinned + self.starting


def host_bytes(model: ModelSection, layout: Layout, precision: str) -> HostBytes:
    """What a rank keeps on the host."""
    if layout.offload_optimizer == "none":
        return HostBytes()
    c, part = number_bytes(precision), trained_parameters(model, layout.tensor_parallel) / layout.replicas
    state = state_bytes(model, layout)
    if layout.zero_stage == 3:  # gradients twice: as they are summed, and as the update takes them
        pinned, rest = _MASTER * part, (2 * _MASTER + state) * part
    else:
        # weights, gradients, a copy of the weights in the compute dtype, and a buffer as large as the largest gradient
        pinned = (2 * _MASTER + c) * part + c * largest_trained(model, layout.tensor_parallel)
        pinned += _MASTER * part if layout.zero_stage == 2 and _sums_on_the_host(layout, precision) else 0
        rest = state * part
    return HostBytes(standing=pinned + rest, pinned=pinned, starting=_MASTER * part)  # zero gradients for the state


def _sums_on_the_host(layout: Layout, precision: str) -> bool:
    """In bf16 ZeRO-1 and -2 sum micro-batches' gradients in fp32 on the device."""
    return precision == "fp32" and layout.gradient_accumulation_steps > 1


def device_bytes(model: ModelSection, layout: Layout, precision: str) -> ZeroBytes:
    """What DeepSpeed holds on the device, beside the host's."""
    if layout.offload_optimizer == "none":
        return zero_bytes(model, layout, precision)
    t, c, n = layout.tensor_parallel, number_bytes(precision), layout.replicas
    psi, largest = trained_parameters(model, t), largest_trained(model, t)
    whole = local_parameters(model, t)  # frozen ones stay on the device
    bucket = float(c * reduce_bucket(model, t, layout.zero_stage))
    if layout.zero_stage == 3:
        copy = second_copy(model, layout, c)
        in_passes = copy if releases_weights(model, t) else 0.0
        return ZeroBytes(
            parameters=c * whole / n,
            gradients=0,
            optimizer=0,
            buckets=bucket,
            gathered=in_passes + (c * min(live_parameters(model, t), whole) if n > 1 else 0),
            stepping=copy,
            in_forward=c * prefetch_bucket(model, t) if n > 1 else 0,
            reducing=bucket + c * first_and_embedding(model, t) if n > 1 else bucket,
            starting=max(0.0, c * largest_parameter(model, t) - bucket) + copy,
        )
    again = layout.gradient_accumulation_steps > 1
    partition = 4 * psi / n if precision == "bf16" else 0.0  # fp32 sums of this rank's part, until the host has them
    alike = ZeroBytes(
        parameters=c * whole,
        gradients=0,
        optimizer=0,
        buckets=c * largest,  # through which gradients come back from the host
        starting=max(0.0, c * psi - c * largest),  # all parameters are joined into one tensor
    )
    if layout.zero_stage == 2:
        return replace(
            alike,
            held=partition if again else 0,
            made=partition,
            in_backward=bucket,
            late_in_backward=bucket + (0 if again else partition),
            reducing=bucket + 8 * largest,  # the norm is taken in fp64
            stepping=partition,
        )
    bucket *= 4 / c  # gradients are summed in fp32, whole on every rank, until the last micro-batch
    return replace(
        alike,
        held=4 * psi if again else 0,
        made=4 * psi,
        in_forward=bucket if again else 0,
        in_backward=bucket,
        late_in_backward=bucket,
        reducing=partition + (2 if precision == "bf16" else 8) * largest,
        stepping=(partition + bucket) if precision == "bf16" else 0,
    )


def host_moved_bytes(model: ModelSection, layout: Layout) -> float:
    """Bytes of host memory that a rank's update moves."""
    part = trained_parameters(model, layout.tensor_parallel) / layout.replicas
    return (_UPDATE_BYTES + 2 * state_bytes(model, layout)) * part


def copied_bytes(model: ModelSection, layout: Layout, precision: str) -> float:
    """Bytes between a rank's device and its host in a step: gradients there, weights back.

    ZeRO-3 keeps the sums of micro-batches on the host: each adds to them on the device, and sends them back. So does
    ZeRO-2 in fp32.
    """
    a, c = layout.gradient_accumulation_steps, number_bytes(precision)
    part = trained_parameters(model, layout.tensor_parallel) / layout.replicas
    if layout.zero_stage == 3:
        each = 8 * a + 4 + 4
    else:
        each = 4 + c + (8 * a if layout.zero_stage == 2 and _sums_on_the_host(layout, precision) else 0)
    return each * part
