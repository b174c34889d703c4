"""What Slurm knows of the nodes that a job may be given."""

import re

from launcher.slurm import commands
from megatrain.base.errors import PreflightError

_FIELD = re.compile(r"(\w+)=(\S*)")
_GPUS = re.compile(r"gpu(?::[^:,()]+)?:([0-9]+)")


def cores_per_gpu(partition: str | None) -> int | None:
    """The cores that belong to a GPU: of all nodes with GPUs in the partition (None: anywhere) the fewest.

    None where no Slurm answers, or it knows of no such node. Without `--cpus-per-task` a task gets one core, for its
    main thread, autograd, NCCL, the reading threads and the compiler together.
    """
    try:
        lines = commands.run_slurm("scontrol", "--oneliner", "show", "nodes").splitlines()
    except PreflightError:
        return None
    shares = []
    for line in lines:
        node = dict(_FIELD.findall(line))
        gpus = sum(int(count) for count in _GPUS.findall(node.get("Gres", "")))
        cores = node.get("CPUEfctv") or node.get("CPUTot", "")  # those that jobs may have, in newer versions
        if gpus and cores.isdecimal() and (partition is None or partition in node.get("Partitions", "").split(",")):
            shares.append(int(cores) // gpus)
    return max(1, min(shares)) if shares else None
