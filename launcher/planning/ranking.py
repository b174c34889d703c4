"""Which of two layouts is better: by predicted step time, with a handicap where the prediction misses a cost."""

from launcher.planning.hardware import Hardware
from launcher.planning.plan_result import Plan

# Handicaps on the predicted time. ZeRO-1 is the default: fp32 gradient sums, one reduction per step, and the fewest
# hooks; 2 and 3 pay a hook per tensor. ZeRO-0 comes after all others: in bf16 it sums gradients in bf16.
_ZERO_HANDICAP = {0: 1.0, 1: 1.0, 2: 1.10, 3: 1.12}
_RECOMPUTE_HANDICAP = {"none": 1.0, "selective": 1.005, "full": 1.01, "offload": 1.02}
_HPZ_HANDICAP = 1.02  # on a GPU DeepSpeed has the host wait for each weight's second copy, once a step
_TENSOR_PARALLEL_HANDICAP = 1.02  # for each doubling
_CONTEXT_PARALLEL_HANDICAP = 1.02  # likewise
_WHOLE_NORMS_HANDICAP = 1.005  # tensor without sequence parallelism: the same time, more memory
_TIGHT, _TIGHT_HANDICAP = 0.80, 1.02  # of 454 runs planned below 80% of memory none ran out (arXiv 2411.06465)


def comfortable(hardware: Hardware) -> float:
    """Bytes; plans that need more are ranked lower."""
    return _TIGHT * hardware.memory_bytes


def rank_key(plan: Plan, hardware: Hardware) -> tuple[bool, float]:
    """Better plans come first: by seconds, with the handicaps."""
    seconds = plan.step_seconds * _ZERO_HANDICAP[plan.zero_stage]
    seconds *= _RECOMPUTE_HANDICAP[plan.activation_checkpointing]
    seconds *= _HPZ_HANDICAP if plan.layout.zero_hpz_partition_size > 1 else 1.0
    if plan.tensor_parallel > 1:
        seconds *= _TENSOR_PARALLEL_HANDICAP ** (plan.tensor_parallel.bit_length() - 1)
        seconds *= 1.0 if plan.sequence_parallel else _WHOLE_NORMS_HANDICAP
    seconds *= _CONTEXT_PARALLEL_HANDICAP ** (plan.context_parallel.bit_length() - 1)
    if plan.memory.total > comfortable(hardware):
        seconds *= _TIGHT_HANDICAP
    return plan.zero_stage == 0, seconds
