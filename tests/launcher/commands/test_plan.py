"""`megatrain plan`: its questions, its JSON, and how it ends where nothing fits."""

import json
from pathlib import Path

import pytest

from launcher.commands.plan import show_plan
from launcher.planning.assumed import assume
from launcher.planning.hardware import load_hardware
from megatrain.base.errors import ExitCode
from megatrain.config.file import load_config
from tests.launcher.conftest import TINY
from tests.launcher.test_cli import command

HUGE = ("model.hidden_size=65536", "model.intermediate_size=262144", "cluster.hardware=l40s")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return tmp_path


def plan(folder, *arguments):
    return command("plan", "tiny.yaml", *arguments, cwd=folder)


def test_a_plan_shows_its_parts_and_its_reasons(folder):
    said = plan(folder, "--gpus", "4", "cluster.gpus_per_node=4").stdout
    for part in (
        "parameters",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "buffers",
        "margin",
        "compute",
        "MFU",
    ):
        assert part in said
    assert "tensor_parallel=4 does not divide 2 key-value heads" in said


@pytest.mark.parametrize("name", sorted(path.name for path in Path("configs").glob("*.yaml")))
def test_every_shipped_configuration_is_planned_before_its_data_is_made(name, monkeypatch, capsys, tmp_path):
    file = Path("configs").absolute() / name
    monkeypatch.chdir(tmp_path)
    config, assumed = assume(load_config(file), file)
    show_plan(config, True, assumed)
    document = json.loads(capsys.readouterr().out)
    assert document["chosen"]["step_seconds"] > 0
    assert any("32,768" in sentence for sentence in document["assumed"])


def test_a_finetuning_without_a_base_that_any_file_describes_is_refused(folder):
    (folder / "tune.yaml").write_text(
        "run: {name: t}\nfinetune: {base: runs/other, train: [a.jsonl]}\ntraining: {steps: 1, global_batch_size: 2}\n",
        encoding="utf-8",
    )
    done = command("plan", "tune.yaml", cwd=folder)
    assert done.returncode == ExitCode.USAGE
    assert "finetune.base: 'runs/other': is not a run" in done.stderr


def test_nothing_is_assumed_where_the_vocabulary_can_be_known(tiny):
    config = tiny("model.vocab_size=auto", "tokenizer.path=.")
    assert assume(config, Path("tiny.yaml")) == (config, []), (
        "the folder is there: that it holds no tokenizer is an error"
    )
    assert assume(tiny(), Path("tiny.yaml")) == (tiny(), [])


def test_nothing_fits_is_3_with_the_nearest_misses(folder):
    done = plan(folder, *HUGE)
    assert done.returncode == ExitCode.PREFLIGHT
    assert done.stderr.count("nearest miss: ") == 3
    done = plan(folder, *HUGE, "--json")
    assert done.returncode == ExitCode.PREFLIGHT
    document = json.loads(done.stdout)
    assert (document["chosen"], document["candidates"], len(document["nearest"])) == (None, [], 3)
    assert all(miss["reason"] for miss in document["rejected"])


def test_a_sweep_as_table_json_and_picture(folder):
    pytest.importorskip("matplotlib")
    done = plan(folder, "--sweep", "nodes=1,2,4", "--png", "sweep.png")
    assert done.returncode == ExitCode.DONE
    assert "GPU-hours" in done.stdout
    assert (folder / "sweep.png").stat().st_size > 10_000
    rows = json.loads(plan(folder, "--sweep", "nodes=1,2", "--json").stdout)
    assert [row["nodes"] for row in rows] == [1, 2]
    assert set(rows[0]) >= {"tokens_per_second", "mfu", "gpu_hours", "goodput"}


def test_each_question_is_answered_in_a_line(folder):
    said = plan(folder, "--days", "1000", "--largest", "--double").stdout.splitlines()
    assert [line.split()[0] for line in said[1:]] == ["largest", "largest", "1"]
    assert len(said) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sweep", "gpus=1"], "--sweep"),
        (["--png", "x.png"], "--png"),
        (["--gpus", "3"], "--gpus 3"),
    ],
)
def test_misuse_names_the_option(folder, arguments, said):
    done = plan(folder, *arguments)
    assert done.returncode == ExitCode.USAGE
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_calibrate_writes_a_profile_that_plans(folder):
    done = command("plan", "own.yaml", "--calibrate", "--gpus", "2", cwd=folder)
    assert done.returncode == ExitCode.DONE, done.stderr
    assert "written: own.yaml" in done.stdout
    hardware = load_hardware(str(folder / "own.yaml"), 1)
    assert hardware.bf16_tflops > 0
    assert 0 < hardware.link.bandwidth < 1000
    assert plan(folder, "cluster.hardware=own.yaml").returncode == ExitCode.DONE
