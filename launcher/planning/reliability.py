"""What checkpoints and failures cost a run: Young's interval (doi 10.1145/361147.361115, equation 7; Daly's first-order
term is the same) from how often a node fails.

    M = node MTBF / nodes        mean time between failures of the job
    δ                            seconds that a checkpoint stops training
    τ = √(2·δ·M)                 the interval that loses least
    lost = δ/τ + τ/(2M) + R/M    saving; work since the last checkpoint, on average half an interval; R to be back
"""

import math
from dataclasses import dataclass

from launcher.planning.matrices import checkpoint_bytes
from megatrain.config import ClusterSection, ModelSection
from megatrain.optim.registry import OptimizerSection

RESTART_SECONDS = 600.0  # noticing, queueing again, starting, loading


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Of a whole job."""

    mtbf_seconds: float
    checkpoint_seconds: float
    interval_seconds: float
    lost: float  # share of the time that is not training, below 1

    @property
    def goodput(self) -> float:
        return 1 - self.lost


def reliability(model: ModelSection, optimizer: OptimizerSection, cluster: ClusterSection, nodes: int) -> Reliability:
    """Of a job on `nodes` of a cluster, with the best interval between checkpoints."""
    mtbf = cluster.node_mtbf_hours * 3600 / nodes
    saving = checkpoint_bytes(model, optimizer) / (cluster.storage_gbps * 1e9 * nodes)
    interval = max(math.sqrt(2 * saving * mtbf), saving)
    lost = saving / interval + interval / (2 * mtbf) + RESTART_SECONDS / mtbf
    return Reliability(mtbf_seconds=mtbf, checkpoint_seconds=saving, interval_seconds=interval, lost=min(lost, 0.99))
