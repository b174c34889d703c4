"""A GPU's share of the cores, as Slurm counts them."""

import pytest

from launcher.slurm import nodes
from megatrain.base.errors import PreflightError

LINES = """\
NodeName=login Arch=x86_64 CPUAlloc=0 CPUTot=64 Gres=(null) Partitions=all
NodeName=a1 CPUAlloc=0 CPUEfctv=124 CPUTot=128 Gres=gpu:h100:8(S:0-1) State=IDLE Partitions=all,gpu
NodeName=a2 CPUTot=96 Gres=gpu:h100:8(S:0-1),shard:16 State=IDLE Partitions=all,gpu
NodeName=b1 CPUTot=16 Gres=gpu:4 State=IDLE Partitions=all,small
NodeName=b2 CPUTot=2 Gres=gpu:4 State=IDLE Partitions=tiny
"""


@pytest.mark.parametrize(("partition", "cores"), [("gpu", 12), ("small", 4), ("tiny", 1), ("none", None), (None, 1)])
def test_the_fewest_cores_of_a_gpu(monkeypatch, partition, cores):
    monkeypatch.setattr(nodes.commands, "run_slurm", lambda *command: LINES)
    assert nodes.cores_per_gpu(partition) == cores


def test_no_slurm(monkeypatch):
    def away(*command):
        raise PreflightError("scontrol: not found")

    monkeypatch.setattr(nodes.commands, "run_slurm", away)
    assert nodes.cores_per_gpu("gpu") is None
