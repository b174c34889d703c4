from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatrain.base.errors import PreflightError
from megatrain.monitor.sinks import tensorboard
from megatrain.monitor.sinks.tensorboard import TensorBoard
from megatrain.run.directory import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def scalars(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of the run, by tag."""
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write(run, make, numbers, *, resume_step=0, **fields):
    board = TensorBoard(run, None, resume_step=resume_step)
    for number in numbers:
        board.write(number, make(number, **fields))
    board.close()


def test_every_scalar_with_its_value_over_the_step(run, step_metrics):
    write(run, step_metrics, [10], step_seconds=0.5, data_wait_fraction=0.2, memory_bytes=3 * 2**30)
    board = TensorBoard(run, None, resume_step=10)
    board.write(10, {"validation_loss": 3.25})
    board.close()
    expected = {
        "train/loss": 3.412,
        "train/gradient_norm": 0.41,
        "train/learning_rate": 5.9e-4,
        "validation/loss": 3.25,
        "throughput/tokens_per_second": 1.92e6,
        "throughput/tokens_per_second_per_gpu": 3.0e4,
        "throughput/mfu": 0.413,
        "throughput/step_seconds": 0.5,
        "throughput/data_wait_fraction": 0.2,
        "memory/gib": 3.0,
    }
    assert scalars(run) == {tag: [(10, pytest.approx(value))] for tag, value in expected.items()}


def test_resuming_shows_each_step_once(run, step_metrics):
    write(run, step_metrics, [10, 20, 30], loss=4.0)
    write(run, step_metrics, [30, 40], resume_step=20, loss=2.0)
    assert scalars(run)["train/loss"] == [(10, 4.0), (20, 4.0), (30, 2.0), (40, 2.0)]


def test_steps_lost_between_a_checkpoint_and_a_crash_disappear(run, step_metrics):
    write(run, step_metrics, [10, 11, 30], loss=4.0)
    write(run, step_metrics, [40], resume_step=10, loss=2.0)
    assert scalars(run)["train/loss"] == [(10, 4.0), (40, 2.0)]


def test_a_restart_from_the_beginning_shows_nothing_of_the_earlier_start(run, step_metrics):
    board = TensorBoard(run, None, resume_step=0)
    board.write(0, {"validation_loss": 5.0})
    board.write(10, step_metrics(10))
    board.close()
    board = TensorBoard(run, None, resume_step=0)
    board.write(0, {"validation_loss": 4.0})
    board.close()
    assert scalars(run)["validation/loss"] == [(0, 4.0)]
    assert scalars(run).get("train/loss", []) == []


def test_a_disk_that_gets_full_is_one_error_that_names_the_folder(small_disk, step_metrics, capfd, monkeypatch):
    monkeypatch.setattr(tensorboard, "_FLUSH_SECONDS", 0)
    board = TensorBoard(RunDir(small_disk), None, resume_step=0)

    def write_on():
        for number in range(10_000):
            board.write(number, step_metrics(number))

    with pytest.raises(PreflightError, match="tensorboard: cannot be written: No space left on device"):
        write_on()
    board.close()
    assert "Traceback" not in capfd.readouterr().err, "of the thread that writes"


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(PreflightError, match="tensorboard: cannot be written: "):
        TensorBoard(RunDir(tmp_path), None, resume_step=0)
