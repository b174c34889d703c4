from types import SimpleNamespace

import torch

from megatrain.monitor.metrics import read_metrics
from megatrain.parallel.mesh import Mesh
from megatrain.run_dir import RunDir
from megatrain.topology import Topology
from megatrain.train import report
from tests.distributed.layouts import Layout, config_of


def test_peaks_of_memory_are_of_training_once_the_first_step_is_done(one_rank, tmp_path, monkeypatch) -> None:
    """What building and compiling took stands in the first report only."""
    memory = {"allocated": 99}
    monkeypatch.setattr(report, "memory_bytes", lambda: memory["allocated"])
    monkeypatch.setattr(report, "reset_peak_memory", lambda: memory.update(allocated=7))
    config = config_of(Layout(0, 1, 1))
    config = config.model_copy(
        update={
            "cluster": config.cluster.model_copy(update={"peak_tflops": 1.0}),
            "monitor": config.monitor.model_copy(update={"log_every_steps": 1, "tensorboard": False}),
        }
    )
    run = RunDir(tmp_path)
    console = SimpleNamespace(step=lambda metrics: None, close=lambda: None)
    reporter = report.Reporter(config, run, Mesh(Topology(world_size=1)), console, resume_step=0)  # type: ignore[arg-type]
    for step in (1, 2, 3):
        reporter.step(step, torch.zeros(()), target_tokens=1, grad_norm=0.0, learning_rate=0.0, wait=0.0)
    reporter.close()
    assert [row["memory_bytes"] for row in read_metrics(run.metrics)] == [99, 7, 7]
