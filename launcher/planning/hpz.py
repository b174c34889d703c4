"""Hierarchical partitioning of ZeRO-3 (hpZ; ZeRO++, arXiv 2306.10209, section 3.2): the replicas of a node keep a
second copy of the weights between them. The first pass of a step gathers from all replicas, later ones within the node.
"""

from launcher.planning.hardware import GIB
from launcher.planning.layout import Layout
from launcher.planning.plan_result import Plan
from megatrain.base.types import AUTO


def hpz_sizes(
    fixed: int | str, *, releases: bool, zero_stage: int, replicas: int, replicas_of_node: int
) -> tuple[int, ...]:
    """What the planner tries: none, and where there are several nodes all replicas of one.

    Args:
        releases: whether weights are let go between passes, and gathered again; else a second copy is of no use.
    """
    if isinstance(fixed, int):
        return (fixed,)
    assert fixed == AUTO
    several = 1 < replicas_of_node < replicas and replicas % replicas_of_node == 0
    return (1, replicas_of_node) if zero_stage == 3 and releases and several else (1,)


def why_hpz(plan: Plan, without: Plan | None, network: str) -> str:
    """What it brings, in words.

    Args:
        without: the same layout without; None where that does not fit.
        network: what lies between the nodes.
    """
    layout: Layout = plan.layout
    if layout.zero_hpz_partition_size == 1 or without is None:
        return ""
    saved, more = without.time.total - plan.time.total, plan.memory.total - without.memory.total
    brings = f"{saved * 1e3:.1f} ms less" if saved > 0 else f"nothing ({-saved * 1e3:.1f} ms more)"
    passes = 2 * layout.gradient_accumulation_steps
    return (
        f"1 of {passes} gathers of a step crosses {network}, the others stay among {layout.zero_hpz_partition_size} "
        f"ranks: {brings}, for {more / GIB:.2f} GiB more"
    )
