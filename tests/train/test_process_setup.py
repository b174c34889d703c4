"""What a rank's process takes of its node: descriptors, caches that nobody else can write, the planned device."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from megatrain.run.directory import RunDir
from megatrain.train import process_setup
from megatrain.train.process_setup import keep_files_local, settle_device


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one():
    code = (
        "import resource; from megatrain.train.process_setup import raise_descriptor_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 2048))\n"
        "print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2048", "2048", "2048"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0


@pytest.fixture
def variables(monkeypatch, tmp_path):
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_FR_DUMP_TEMP_FILE"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setattr(process_setup.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_caches_lie_on_the_nodes_own_disk_and_traces_in_the_run(variables):
    keep_files_local(RunDir("runs/tiny"))
    folder = variables / f"megatrain-{os.getuid()}"
    assert os.environ["TRITON_CACHE_DIR"] == f"{folder}/triton"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == f"{folder}/inductor"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == str(Path("runs/tiny/logs/nccl-trace-rank-").absolute())


def test_a_folder_that_others_can_write_is_not_loaded_from(variables):
    (variables / f"megatrain-{os.getuid()}").mkdir()
    (variables / f"megatrain-{os.getuid()}").chmod(0o777)
    keep_files_local(None)
    assert "TRITON_CACHE_DIR" not in os.environ


def test_a_link_is_not_followed(variables):
    (variables / "elsewhere").mkdir()
    (variables / f"megatrain-{os.getuid()}").symlink_to(variables / "elsewhere")
    keep_files_local(None)
    assert "TRITON_CACHE_DIR" not in os.environ


def test_what_the_user_has_set_stays(variables, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    keep_files_local(None)
    assert os.environ["TRITON_CACHE_DIR"] == "mine"


@pytest.mark.parametrize(("planned", "seen"), [("cpu", ""), ("cuda", "0")])
def test_the_plan_decides_the_device(tmp_path, monkeypatch, planned, seen):
    monkeypatch.setenv("DS_ACCELERATOR", "cuda" if planned == "cpu" else "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (tmp_path / "plan.json").write_text(json.dumps({"device": planned}), encoding="utf-8")
    settle_device(RunDir(tmp_path))
    assert (os.environ["DS_ACCELERATOR"], os.environ["CUDA_VISIBLE_DEVICES"]) == (planned, seen)


@pytest.mark.parametrize("text", [None, "{}", "[", '{"device": 3}', "[1]"])
def test_a_run_whose_plan_does_not_say(tmp_path, monkeypatch, text):
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    if text is not None:
        (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    settle_device(RunDir(tmp_path))
    assert os.environ["DS_ACCELERATOR"] == "cuda"
