"""A job whose optimizer is offloaded may take what it needs of a node's memory."""

from types import SimpleNamespace

import pytest

from launcher.planning.hardware import GIB
from launcher.preflight.host_memory import check_host_memory


def found(tiny, host_gib, *overrides):
    plan = SimpleNamespace(memory=SimpleNamespace(host=host_gib * GIB), world_size=16)
    config = tiny("cluster.gpus_per_node=8", "cluster.nodes=2", *overrides)
    if host_gib:
        config = tiny("cluster.gpus_per_node=8", "cluster.nodes=2", "parallel.offload_optimizer=cpu", *overrides)
    return [(one.level, one.text) for one in check_host_memory(config, plan)]


@pytest.mark.parametrize(
    ("overrides", "level", "said"),
    [
        ((), "note", "takes 400 GiB of each node's memory. If the partition gives a job less: slurm.extra: {mem: 0}."),
        (("slurm.extra={mem: 300G}",), "error", "and slurm.extra.mem is 300G. Set it to 0, all that a node has."),
        (("slurm.extra={mem: 4096}",), "error", "slurm.extra.mem is 4096"),
    ],
)
def test_too_little_is_said(tiny, overrides, level, said):
    ((of, text),) = found(tiny, 50, *overrides)
    assert of == level
    assert said in text


@pytest.mark.parametrize("extra", ["{mem: 0}", "{mem: 500G}", "{mem: 1T}", "{mem-per-gpu: 60G}", "{exclusive: true}"])
def test_enough_is_not(tiny, extra):
    assert found(tiny, 50, f"slurm.extra={extra}") == []


def test_nor_where_nothing_is_offloaded(tiny):
    assert found(tiny, 0, "slurm.extra={mem: 1G}") == []


def test_what_takes_it_is_named(tiny):
    ((_, text),) = found(tiny, 50, "parallel.activation_checkpointing=offload")
    assert text.startswith("parallel.offload_optimizer: cpu and parallel.activation_checkpointing: offload: takes 400")
