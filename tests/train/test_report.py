from types import SimpleNamespace

import pytest
import torch

from megatrain.base.progress import Progress
from megatrain.monitor.metrics_file import read_metrics
from megatrain.parallel.mesh import Mesh
from megatrain.run.directory import RunDir
from megatrain.topology import Topology
from megatrain.train import report
from tests.distributed.layouts import GLOBAL_BATCH, SEQUENCE, Layout, config_of


@pytest.fixture
def make_reporter(one_rank, tmp_path):
    config = config_of(Layout(0, 1, 1))
    config = config.model_copy(
        update={
            "cluster": config.cluster.model_copy(update={"peak_tflops": 1.0}),
            "monitor": config.monitor.model_copy(update={"log_interval_steps": 1, "sinks": ()}),
        }
    )
    console = SimpleNamespace(write=lambda step, values: None, close=lambda: None)

    def rows(start: Progress, steps: int) -> list[dict]:
        """What a reporter writes of so many steps."""
        run, progress = RunDir(tmp_path), start
        reporter = report.Reporter(config, run, Mesh(Topology(world_size=1)), console, start=start)  # type: ignore[arg-type]
        for _ in range(steps):
            progress = progress.after_step(GLOBAL_BATCH)
            reporter.step(progress, {"loss": torch.zeros(()), "grad_norm": 0.0, "learning_rate": 0.0}, wait=0.0)
        reporter.close()
        return read_metrics(run.metrics)

    return rows


def test_peaks_of_memory_are_of_training_once_the_first_step_is_done(make_reporter, monkeypatch) -> None:
    """What building and compiling took stands in the first report only."""
    memory = {"allocated": 99}
    monkeypatch.setattr(report, "memory_bytes", lambda: memory["allocated"])
    monkeypatch.setattr(report, "reset_peak_memory", lambda: memory.update(allocated=7))
    assert [row["memory_bytes"] for row in make_reporter(Progress(), 3)] == [99, 7, 7]


def test_tokens_are_those_that_were_read_whatever_the_batch_was_before(make_reporter) -> None:
    rows = make_reporter(Progress(5, 40 * GLOBAL_BATCH), 2)
    assert [(row["step"], row["tokens"] // (GLOBAL_BATCH * SEQUENCE)) for row in rows] == [(6, 41), (7, 42)]
