"""How a rank ends, and how it begins; in processes of their own, for `run` ends its process."""

import os
import subprocess
import sys

import pytest

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES and "SLURM" not in name}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=kept | environment
    )


def ends(raising: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return python(
        f"""
from megatrain.errors import *
from megatrain.train.process import run
def main():
    print("began")
    {raising}
run(main)
print("never reached")
""",
        **environment,
    )


@pytest.mark.parametrize(
    ("raising", "code"),
    [
        ("pass", 0),
        ("raise ConfigError('one line')", 2),
        ("raise PreflightError('one line')", 3),
        ("raise DataError('one line')", 4),
        ("raise CheckpointError('one line')", 5),
        ("raise Stopped('SIGTERM')", 75),
        ("raise KeyboardInterrupt", 130),
        ("raise ValueError('a defect')", 1),
        ("raise SystemExit(9)", 1),
    ],
)
def test_exit_codes(raising, code) -> None:
    done = ends(raising)
    assert done.returncode == code
    assert done.stdout == "began\n"  # flushed, and nothing after it
    if 2 <= code <= 5:
        assert done.stderr == "error: one line\n"
    elif code == 1:
        assert "Traceback" in done.stderr
    else:
        assert done.stderr == ""


def test_each_line_of_an_error_is_marked() -> None:
    assert ends("raise DataError('first\\nsecond')").stderr == "error: first\nerror: second\n"


def test_one_rank_tells_what_all_find() -> None:
    done = ends("raise DataError('told once')", RANK="1")
    assert (done.returncode, done.stderr) == (4, "")


def test_a_defect_is_told_by_every_rank() -> None:
    done = ends("raise ValueError('a defect')", RANK="1")
    assert done.returncode == 1
    assert "ValueError: a defect" in done.stderr


def test_a_waiting_thread_does_not_hold_the_process() -> None:
    assert ends("import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()").returncode == 0


JOIN = """
from megatrain.train.process import run, join
import torch.distributed as dist
def main():
    device = join()
    print(device, dist.get_rank(), dist.get_world_size())
run(main)
"""


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "MASTER_PORT": "1"}, "MASTER_ADDR"),
    ],
)
def test_what_is_not_set_is_named(given, missing) -> None:
    done = python(JOIN, **given)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: environment: {missing} not set: start ranks with `megatrain train`, torchrun or srun\n"
    )


@pytest.mark.parametrize(
    "names", [("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")]
)
def test_a_rank_of_torchrun_or_srun_joins(names) -> None:
    who = dict(zip(names, ("0", "1", "0"), strict=True))
    # port 0, any free one: a lone rank has nobody to tell which
    done = python(JOIN, **who, MASTER_ADDR="127.0.0.1", MASTER_PORT="0", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cpu 0 1\n"
