"""The doctor names what has problems, and what to do."""

from pathlib import Path

from launcher.preflight import doctor
from launcher.preflight.doctor import PACKAGES, examine


def by_name(folder):
    return {check.name: check for check in examine(folder)}


def test_a_working_machine(tmp_path):
    checks = by_name(tmp_path)
    assert set(checks) == {
        *("python", *PACKAGES, "accelerator", "gpus", "machine", "open files", "compiler", "network"),
        *("disk", "disk speed", "clock", "slurm", "partitions"),
    }
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


def test_what_the_disk_and_the_clock_do(tmp_path):
    assert "MiB/s written to" in doctor._disk_speed(tmp_path / "later").value
    assert doctor._clock(tmp_path).level == "ok"
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_an_interface_that_is_not_there(monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "nosuch0")
    check = doctor._network()
    assert (check.level, "NCCL_SOCKET_IFNAME=nosuch0" in check.value) == ("error", True)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "^lo,docker0")
    assert doctor._network().level != "error"


def test_broken_and_busy_gpus(tmp_path, monkeypatch):
    stand_in = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for rows, level in (("0, 3, 0", "ok"), ("0, 3, 0\\n1, 70000, [N/A]", "warning"), ("0, 3, 2", "error")):
        stand_in.write_text(f"#!/bin/sh\nprintf '{rows}\\n'\n", encoding="utf-8")
        stand_in.chmod(0o755)
        assert doctor._gpus().level == level, rows
