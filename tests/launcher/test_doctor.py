"""The doctor names what is amiss, and what to do."""

from pathlib import Path

from launcher.doctor import PACKAGES, examine


def by_name(folder):
    return {check.name: check for check in examine(folder)}


def test_a_working_machine(tmp_path):
    checks = by_name(tmp_path)
    assert set(checks) == {"python", *PACKAGES, "accelerator", "machine", "compiler", "disk", "slurm"}
    assert all(checks[name].level == "ok" for name in ("python", "torch", "accelerator", "machine"))


def test_every_complaint_has_a_remedy(tmp_path, monkeypatch):
    (tmp_path / "scontrol").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler, and half a Slurm
    (tmp_path / "file").touch()
    checks = by_name(tmp_path)
    assert checks["compiler"].level == "warning"
    assert checks["slurm"].level == "error"
    assert "sbatch" in checks["slurm"].value
    assert all(check.fix for check in checks.values() if check.level != "ok")


def test_the_nearest_folder_that_exists_is_asked_for_room(tmp_path):
    assert str(tmp_path) in by_name(tmp_path / Path("not/yet/there"))["disk"].value
