"""What a rank finds in its environment, and where the ranks of one machine meet."""

import socket
from pathlib import Path

import pytest

from launcher.launch import environment
from launcher.launch.environment import NodeRanks, alone, rank_command, rank_environment
from megatrain.base.errors import PreflightError
from megatrain.run.directory import RunDir

NAMES = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS", "GLOO_SOCKET_IFNAME", "PYTORCH_ALLOC_CONF")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in (*NAMES, "PYTORCH_CUDA_ALLOC_CONF", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def found(device="cpu"):
    return rank_environment(1, 4, NodeRanks(4, 8, "node1", 29500), device, None)


def test_a_cpu_rank_sees_no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    settings = found("cpu")
    assert (settings["DS_ACCELERATOR"], settings["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")
    assert "PYTORCH_ALLOC_CONF" not in settings


def test_a_gpu_rank_takes_a_gpu_whatever_the_shell_says(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert found("cuda")["DS_ACCELERATOR"] == found("rocm")["DS_ACCELERATOR"] == "cuda"
    assert found("cuda")["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "CUDA_VISIBLE_DEVICES" not in found("cuda")


def test_what_the_user_has_set_stays(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "mine")
    assert {found("cuda")[name] for name in NAMES} == {"mine"}
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "mine")  # its older name
    assert "PYTORCH_ALLOC_CONF" not in found("cuda")


def test_ranks_of_one_machine_meet_where_only_it_can_reach_them():
    place = alone(2)
    with place.listener:
        assert place.listener.getsockname() == ("127.0.0.1", place.port)
        first, second = (rank_environment(index, 2, place, "cpu", None) for index in range(2))
        assert first["MEGATRAIN_STORE"] == str(place.listener.fileno())
        assert second["MEGATRAIN_STORE"] == "client"
        assert first["GLOO_SOCKET_IFNAME"] == first["NCCL_SOCKET_IFNAME"] == "lo"
    assert "MEGATRAIN_STORE" not in found()
    assert "GLOO_SOCKET_IFNAME" not in found()


def test_a_machine_with_ipv6_only(monkeypatch):
    monkeypatch.setattr(environment, "_LOOPBACK", ((socket.AF_INET, "203.0.113.1"), environment._LOOPBACK[1]))
    place = alone(1)
    place.listener.close()
    assert place.address == "::1"


def test_a_machine_without_loopback_is_told(monkeypatch):
    monkeypatch.setattr(environment, "_LOOPBACK", ((socket.AF_INET, "203.0.113.1"),))
    with pytest.raises(PreflightError, match=r"network: neither 127\.0\.0\.1 nor ::1 can be listened on"):
        alone(1)


def test_the_command_of_a_rank():
    command = rank_command("python", "megatrain.train", RunDir("-rf/tiny"), "auto")
    assert command == ["python", "-P", "-m", "megatrain.train", str(Path("-rf/tiny").absolute()), "--resume", "auto"]
