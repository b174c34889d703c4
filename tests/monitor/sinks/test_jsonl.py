import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatrain.base.errors import DataError, PreflightError
from megatrain.monitor.metrics_file import read_metrics
from megatrain.monitor.sinks.jsonl import JsonLines
from megatrain.run.directory import RunDir

FIELDS = {
    "step", "loss", "grad_norm", "learning_rate", "tokens", "step_seconds", "tokens_per_second", "mfu",
    "data_wait_seconds", "memory_bytes", "data_wait_fraction", "tokens_per_second_per_gpu",
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def steps(run: RunDir) -> list[int]:
    return [row["step"] for row in read_metrics(run.metrics)]


def write(run: RunDir, make, numbers, *, resume_step: int = 0) -> None:
    log = JsonLines(run, resume_step=resume_step)
    for number in numbers:
        log.write(number, make(number))
    log.close()


def test_a_line_holds_step_and_values(run, step_metrics):
    write(run, step_metrics, [10])
    (row,) = read_metrics(run.metrics)
    assert set(row) == FIELDS
    assert row["loss"] == 3.412


def test_evaluations_are_lines_of_their_own(run, step_metrics):
    log = JsonLines(run, resume_step=0)
    log.write(0, {"validation_loss": 4.5})
    log.write(1, step_metrics(1))
    log.close()
    assert read_metrics(run.metrics)[0] == {"step": 0, "validation_loss": 4.5}


def test_resuming_keeps_each_step_once(run, step_metrics):
    write(run, step_metrics, [10, 20, 30])
    write(run, step_metrics, [30, 40], resume_step=20)
    assert steps(run) == [10, 20, 30, 40]


def test_kept_lines_are_kept_byte_for_byte(run, step_metrics):
    write(run, step_metrics, [10])
    before = run.metrics.read_bytes()
    write(run, step_metrics, [], resume_step=10)
    assert run.metrics.read_bytes() == before


def test_a_run_from_its_beginning_starts_an_empty_file(run, step_metrics):
    log = JsonLines(run, resume_step=0)
    log.write(0, {"validation_loss": 4.5})
    log.close()
    write(run, step_metrics, [10], resume_step=0)
    assert steps(run) == [10]


@pytest.mark.parametrize("tail", ['{"step": 30, "lo', '{"step": 30}', "\0\0\0\0", '{"step": 3'])
def test_a_torn_last_line_is_skipped_and_dropped_on_resume(run, step_metrics, tail):
    write(run, step_metrics, [10, 20])
    with open(run.metrics, "a") as file:
        file.write(tail)
    assert steps(run) == [10, 20]
    write(run, step_metrics, [30], resume_step=30)
    assert steps(run) == [10, 20, 30]


def test_resuming_drops_what_a_crash_left_in_the_middle(run, step_metrics):
    write(run, step_metrics, [10])
    with open(run.metrics, "a") as file:
        file.write('\0\0\0\n{"step": 20}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: not a JSON object"):
        read_metrics(run.metrics)
    write(run, step_metrics, [], resume_step=20)
    assert steps(run) == [10, 20]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_null_in_valid_json(run, step_metrics, value):
    log = JsonLines(run, resume_step=0)
    log.write(1, step_metrics(1, loss=value))
    log.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(run.metrics.read_text(), parse_constant=refuse)
    assert row["loss"] is None


def test_every_line_outlives_a_process_that_is_killed(run):
    script = (
        "import os, signal, sys\n"
        "from megatrain.monitor.sinks.jsonl import JsonLines\n"
        "from megatrain.run.directory import RunDir\n"
        "log = JsonLines(RunDir(sys.argv[1]), resume_step=0)\n"
        "for step in range(1, 4): log.write(step, {'validation_loss': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(run)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert steps(run) == [1, 2, 3]


def test_reading_what_is_not_there_says_so(run):
    with pytest.raises(DataError, match="no metrics here"):
        read_metrics(run.metrics)


def test_a_disk_that_gets_full_is_one_error_that_names_the_file(small_disk, step_metrics):
    log = JsonLines(RunDir(small_disk), resume_step=0)

    def write_on():
        for number in range(10_000):
            log.write(number, step_metrics(number))

    with pytest.raises(PreflightError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
        write_on()
    log.close()  # what could not be written has been told


def test_a_folder_that_cannot_be_written_is_one_error(run):
    run.path.mkdir()
    run.metrics.mkdir()
    with pytest.raises(PreflightError, match=r"metrics\.jsonl: cannot be written: Is a directory"):
        JsonLines(run, resume_step=0)


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"step": -5}',
        '{"step": true}',
        '{"step": 1.5}',
        '{"step": 1e999}',
        f'{{"step": {10**400}}}',
        '{"step": 1, "loss": "low"}',
        '{"step": 1, "step_seconds": [2]}',
        '{"step": 1, "loss": NaN}',
        "x" * 1_000_000,
    ],
)
def test_a_line_that_is_no_report_is_named_and_a_resume_drops_it(run, step_metrics, line):
    write(run, step_metrics, [10])
    good = run.metrics.read_text()
    run.metrics.write_text(f"{line}\n{good}", encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: "):
        read_metrics(run.metrics)
    write(run, step_metrics, [20], resume_step=10)
    assert steps(run) == [10, 20]
