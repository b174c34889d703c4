"""Where ranks are started: options, the variables of several launchers, and what is refused."""

import os
import socket
import subprocess
import sys
import time

import pytest

from launcher.launch.start import LaunchTarget, _check_port
from megatrain.base.errors import ConfigError, PreflightError
from megatrain.run.directory import RunDir
from tests.launcher.launch.test_local import ROOT


def test_the_hosts_must_agree_with_each_other(tiny):
    config, ranks = LaunchTarget.from_options(None, "a:2,b:2", None).apply_to(tiny())
    assert (config.cluster.nodes, config.cluster.gpus_per_node, ranks) == (2, 2, None)
    with pytest.raises(ConfigError, match="the hosts have"):
        LaunchTarget.from_options(None, "a:2,b:4", None).apply_to(tiny())


def test_one_of_several_launchers_by_the_usual_variables(tiny, monkeypatch):
    given = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    config, _ = LaunchTarget.from_options(4, None, None).apply_to(tiny())
    assert (config.cluster.nodes, config.cluster.gpus_per_node) == (2, 4)
    monkeypatch.setenv("NODE_RANK", "2")
    with pytest.raises(ConfigError, match="NODE_RANK: 2: must be below"):
        LaunchTarget.from_options(4, None, None)
    for name, value in (("NNODES", "9" * 5000), ("MASTER_PORT", "99999"), ("NODE_RANK", "-1"), ("NNODES", "0")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            with pytest.raises(ConfigError, match=f"environment: {name}: .*must be a whole number from") as caught:
                LaunchTarget.from_options(4, None, None)
            assert len(str(caught.value)) < 200
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ConfigError, match="NNODES is set, but not MASTER_PORT"):
        LaunchTarget.from_options(4, None, None)


def test_a_port_in_use_is_told_before_a_rank_starts():
    said = r"MASTER_PORT: .*cannot listen there: Address already in use"
    with socket.create_server(("", 0)) as used, pytest.raises(PreflightError, match=said):
        _check_port(port := used.getsockname()[1])
    _check_port(port)


def test_a_cluster_of_gpus_cannot_be_started_from_here(tiny):
    config = tiny("cluster.hardware=h100-sxm", "cluster.nodes=2")
    with pytest.raises(PreflightError, match="--hosts"):
        LaunchTarget().apply_to(config)


@pytest.mark.timeout(900)
def test_two_launchers_with_nnodes_train_as_one(tmp_path):
    """The real command on two "machines": node 0 writes the run's folder, node 1 waits for it, both meet."""
    from tests.project import make_project, metrics

    folder = make_project(tmp_path)
    given = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(21_000 + os.getpid() % 5_000)}
    processes = []
    for node in (1, 0):
        command = [sys.executable, "-m", "launcher.cli", "train", "run.yaml", "training.steps=3", "--nproc", "1"]
        environment = os.environ | given | {"NODE_RANK": str(node), "PYTHONPATH": str(ROOT)}
        processes.append(subprocess.Popen(command, cwd=folder, env=environment))
        time.sleep(0.5)
    assert [process.wait(800) for process in processes] == [0, 0]
    assert [row["step"] for row in metrics(RunDir(folder / "runs/job"))] == [1, 2, 3]
