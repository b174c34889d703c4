import json
import subprocess
from pathlib import Path

import pytest
import torch

from megatrain.monitor.environment import environment, git_revision


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "tracked.py").write_text("a = 1\n")
    git(tmp_path, "add", "tracked.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_it_is_json_and_names_the_versions():
    found = json.loads(json.dumps(environment()))
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["deepspeed"]
    assert found["cpus"] >= 1


def test_no_variable_outside_the_list_is_recorded(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-secret-value")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    text = json.dumps(environment())
    assert "a-secret-value" not in text
    assert json.loads(text)["variables"]["SLURM_JOB_ID"] == "4711"


def test_hosts_of_all_ranks_are_recorded_where_known():
    assert environment(["node-a", "node-b"])["hosts"] == ["node-a", "node-b"]


def test_the_revision_and_whether_files_differ_from_it(repository):
    revision = git(repository, "rev-parse", "HEAD")
    assert git_revision(repository / "tracked.py") == {"revision": revision, "dirty": False}
    (repository / "tracked.py").write_text("a = 2\n")
    assert git_revision(repository / "tracked.py") == {"revision": revision, "dirty": True}


def test_an_installed_copy_inside_a_foreign_repository_has_no_revision(repository):
    (repository / "installed.py").write_text("")
    assert git_revision(repository / "installed.py") is None


def test_no_repository_no_revision(tmp_path):
    assert git_revision(tmp_path / "file.py") is None


def test_no_git_no_revision(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_revision(repository / "tracked.py") is None
