"""How a rank ends, and how it begins; in processes of their own, for `run` ends its process."""

import os
import socket
import subprocess
import sys

import pytest

from megatrain.run.directory import RunDir
from megatrain.run.lock import launcher_lock

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR", "MEGATRAIN_STORE")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES and "SLURM" not in name}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=kept | environment
    )


def ends(raising: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return python(
        f"""
from megatrain.base.errors import *
from megatrain.train.rank import run
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


def test_an_error_of_the_runs_own_files_is_one_message(tmp_path) -> None:
    code = (
        "import sys\nfrom megatrain.base.files import write_json\nfrom megatrain.run.directory import RunDir\n"
        "from megatrain.train.rank import run\n"
        "folder = RunDir(sys.argv[1])\nfolder.environment.mkdir()\n"
        "run(lambda: write_json(folder.environment, 1), folder)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (3, f"error: {tmp_path}/environment.json: Is a directory\n")


@pytest.mark.parametrize(("raising", "code"), [("raise CheckpointError('x')", 5), ("pass", 0), ("raise ValueError", 1)])
def test_a_log_on_a_full_disk_changes_no_exit_code(raising, code) -> None:
    call = (
        f"from megatrain.base.errors import *\nfrom megatrain.train.rank import run\ndef main(): {raising}\nrun(main)"
    )
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", call], stdout=full, stderr=full, timeout=60).returncode == code


def test_rank_zero_that_torchrun_starts_has_the_run_alone(tmp_path) -> None:
    code = (
        "import sys\nfrom megatrain.run import lock\nlock._LAUNCHER_SECONDS = 0.1\n"
        "from megatrain.train.rank import main\nmain('x', None, lambda run, resume: print('trains'))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with launcher_lock(RunDir(tmp_path)):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert "launcher.lock: is held by the process that trains the run" in done.stderr
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "trains\n"


def test_one_rank_tells_what_all_find() -> None:
    done = ends("raise DataError('told once')", RANK="1")
    assert (done.returncode, done.stderr) == (4, "")


def test_under_srun_too() -> None:
    """Before it has joined, a rank of srun has no RANK."""
    for rank, said in (("0", "error: told once\n"), ("1", "")):
        done = ends("raise DataError('told once')", SLURM_PROCID=rank)
        assert (done.returncode, done.stderr) == (4, said)


def test_each_rank_tells_why_it_cannot_meet_the_others() -> None:
    done = ends("raise RendezvousError('no route')", RANK="1")
    assert (done.returncode, done.stderr) == (1, "error: no route\n")


def test_a_defect_is_told_by_every_rank() -> None:
    done = ends("raise ValueError('a defect')", RANK="1")
    assert done.returncode == 1
    assert "ValueError: a defect" in done.stderr


def test_a_waiting_thread_does_not_hold_the_process() -> None:
    assert ends("import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()").returncode == 0


JOIN = """
from megatrain.train.rank import run, join
import torch.distributed as dist
def main():
    device, store = join()
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


ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"RANK": "x"}, "RANK: 'x': must be a whole number"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE: '9999"),
        ({"MASTER_PORT": "-1"}, "MASTER_PORT: '-1': must be a whole number"),
        ({"RANK": "3"}, ""),
        ({"DS_ACCELERATOR": "tpu"}, "DS_ACCELERATOR: 'tpu': must be cuda or cpu"),
    ],
)
def test_a_wrong_environment_is_named(changed, said) -> None:
    done = python(JOIN, **(ALONE | changed))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert said in done.stderr


def test_a_run_for_gpus_does_not_train_on_a_cpu() -> None:
    done = python(JOIN, **(ALONE | {"DS_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": ""}))
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: {socket.gethostname()}: torch ")
    assert "sees no GPU; driver: " in done.stderr
    assert done.stderr.count("\n") == 1


WITH_GPUS = """
import os, sys, torch, torch.distributed as dist
count = int(os.environ["GPUS"])
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: count
torch.cuda.set_device = lambda device: print("set", device)
dist.init_process_group = lambda backend, device_id=None, **group: print(backend, device_id)
from megatrain.train.rank import run, join
from megatrain.hardware.device import device_type
run(lambda: print(join()[0], os.environ["LOCAL_RANK"], device_type()))
"""


@pytest.mark.parametrize(
    ("gpus", "local_rank", "planned", "device"),
    [
        ("8", "3", None, "set cuda:3\nnccl cuda:3\ncuda:3 3 cuda\n"),
        ("1", "3", "cuda", "set cuda:0\nnccl cuda:0\ncuda:0 0 cuda\n"),  # one visible to each task
        ("1", "1", "cpu", "gloo None\ncpu 1 cpu\n"),  # planned for CPU ranks, on a machine with a GPU
    ],
)
def test_the_device_of_a_rank(gpus, local_rank, planned, device) -> None:
    given = ALONE | {"LOCAL_RANK": local_rank, "GPUS": gpus} | ({"DS_ACCELERATOR": planned} if planned else {})
    done = python(WITH_GPUS, **given)
    assert done.stderr == ""
    assert done.stdout == device
