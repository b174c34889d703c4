"""Whether a Slurm job may take as much of its nodes' memory as the plan offloads to them."""

import re
from collections.abc import Iterator

from launcher.planning.hardware import GIB
from launcher.planning.plan_result import Plan
from launcher.preflight.finding import Finding
from megatrain.config import Config

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 2**20}  # sbatch's own, megabytes by default
_WHOLE_NODE = 0  # --mem=0


def check_host_memory(config: Config, plan: Plan) -> Iterator[Finding]:
    """Of a job that offloads its optimizer, or activations."""
    if not plan.memory.host:
        return
    needed = plan.memory.host * min(plan.world_size, config.cluster.gpus_per_node)
    given = config.slurm.extra.get("mem")
    offload, parallel = [], config.parallel
    if parallel.offload_optimizer == "cpu":
        offload.append("parallel.offload_optimizer: cpu")
    if parallel.activation_checkpointing == "offload":
        offload.append("parallel.activation_checkpointing: offload")
    what = f"{' and '.join(offload)}: takes {needed / GIB:,.0f} GiB of each node's memory"
    size = None if given is None else _bytes(str(given))
    if size is not None and size != _WHOLE_NODE and size < needed:
        yield Finding("error", f"{what}, and slurm.extra.mem is {given}. Set it to 0, all that a node has.")
    elif given is None and not config.slurm.extra.keys() & {"exclusive", "mem-per-cpu", "mem-per-gpu"}:
        yield Finding("note", f"{what}. If the partition gives a job less: slurm.extra: {{mem: 0}}.")


def _bytes(text: str) -> int | None:
    """None: not a size that sbatch knows, which it says itself."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", text.strip(), re.IGNORECASE)
    return int(match[1]) * _UNITS[match[2].upper()] if match else None
