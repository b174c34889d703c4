"""The outliers among the ranks, by name; and what nvidia-smi complains of."""

from types import SimpleNamespace

import pytest
import torch

from megatrain.hardware.health import (
    Measurement,
    _nvidia_smi,
    _partners,
    find_outliers,
    gpu_complaints,
    memory_complaints,
)


def measured(rank, *, matmul=1.0, near=1.0, far=1.0, clock=0.0, complaints=()):
    return Measurement(
        host=f"node{rank // 2}", rank=rank, matmul_seconds=matmul, near_seconds=near, far_seconds=far,
        clock_offset=clock, complaints=complaints,
    )  # fmt: skip


def test_equal_ranks_are_well():
    assert find_outliers([measured(rank, matmul=1.0 + rank / 100) for rank in range(8)], 1.5) == []
    assert find_outliers([measured(0, near=0.0, far=0.0)], 1.5) == [], "a single rank has nobody to talk to"


def test_a_slow_rank_is_named():
    found = [measured(rank, matmul=2.0 if rank == 5 else 1.0) for rank in range(8)]
    assert find_outliers(found, 1.5) == [
        "rank 5 on node2: its matmul takes 2.0 times the median (2000.0 ms against 1000.0 ms)"
    ]


def test_a_moment_is_no_fault():
    found = [measured(rank, matmul=0.010 if rank == 5 else 0.001) for rank in range(8)]
    assert len(find_outliers(found, 5.0)) == 1
    assert find_outliers(found, 5.0, noise=0.05) == []


def test_of_two_ranks_the_slower_one_is_named():
    (said,) = find_outliers([measured(0), measured(1, matmul=3.0)], 1.5)
    assert said.startswith("rank 1 on node0")


def test_a_slow_link_is_named_at_both_ends():
    found = [measured(rank, far=4.0 if rank in (1, 5) else 1.0) for rank in range(8)]
    assert [said.split(":")[0] for said in find_outliers(found, 1.5)] == ["rank 1 on node0", "rank 5 on node2"]


def test_a_clock_that_is_off_is_told_once_a_host():
    found = [measured(rank, clock=30.0 if rank >= 2 else 0.1) for rank in range(4)]
    assert find_outliers(found, 1.5) == ["node1: its clock is +30 s off that of node0"]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
def test_partners_name_each_other(size):
    for which in (0, 1):
        partner = [_partners(rank, size)[which] for rank in range(size)]
        assert [partner[partner[rank]] for rank in range(size)] == list(range(size))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0, Not Active", ()),
        ("[N/A], [N/A]", ()),
        ("0", ()),
        ("", ()),
        ("3, Active", ("its GPU has 3 uncorrectable ECC errors", "its GPU is slowed down by hardware")),
    ],
)
def test_what_nvidia_smi_complains_of(line, said):
    found = gpu_complaints(line + "\n")
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", ()),
        ("7, 1800\n", ()),  # this process, with NCCL's buffers
        ("4242, 1800\n", ()),  # this process, from inside a container
        ("7, 1800\n8, 500\n", ()),
        ("7, [N/A]\n8, [N/A]\n", ()),
        ("No running processes found\n", ()),
        ("7, 1800\n8, 40000\n", ("40,000 MiB of its GPU are in use by others (processes 8)",)),
        ("4242, 40000\n9, 30000\n", ("30,000 MiB of its GPU are in use by others (processes 9)",)),
    ],
)
def test_only_the_memory_of_others_is_complained_of(answer, said):
    assert memory_complaints(answer, own_pid=7) == said


@pytest.mark.parametrize("known", ["clocks_event_reasons", "clocks_throttle_reasons", "neither"])
def test_a_field_that_this_driver_calls_otherwise(tmp_path, monkeypatch, known):
    (tmp_path / "nvidia-smi").write_text(
        f"""#!/bin/sh
case "$1" in
*compute-apps*) echo "1, 80000" ;;
*{known}*) echo "2, Active" ;;
*clocks*) echo 'Field "clocks" is not a valid field to query.'; exit 2 ;;
*) echo 2 ;;
esac
""",
        encoding="utf-8",
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    said = _nvidia_smi(torch.device("cuda", 0))
    assert said[0].startswith("its GPU has 2 uncorrectable")
    assert len(said) == (1 if known == "neither" else 2)
