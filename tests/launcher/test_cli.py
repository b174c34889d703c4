"""The command: its exit codes, what it prints where, and that it answers without torch."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import VERBS, app, main
from megatrain.base.errors import ExitCode
from megatrain.base.terminal import has_control_characters
from megatrain.config.file import parse_config
from tests.launcher.conftest import TINY, write_data
from tests.trained import make_trained_run

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "deepspeed", "transformers", "datasets", "tensorboard", "numpy")


def command(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "launcher.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    """A working directory with tiny.yaml and the data that it names."""
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    write_data(tmp_path / "data/train")
    return tmp_path


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "tiny.yaml"], ["config", "check", "tiny.yaml"]])
def test_answers_without_torch(folder, arguments):
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]\n"
        "from launcher.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('imported:', *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip() == "imported:"
    assert done.stdout


# half a second and a second on an idle core; the others of a slow, busy machine leave less of it
@pytest.mark.parametrize(("arguments", "limit"), [(["--help"], 1.5), (["plan", "tiny.yaml"], 3.0)])
def test_answers_at_once(folder, arguments, limit):
    def once():
        start = time.perf_counter()
        assert command(*arguments, cwd=folder).returncode == 0
        return time.perf_counter() - start

    assert min(once() for _ in range(5)) < limit


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb):
    words = verb.removesuffix("_").split(".")
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0
    assert f"megatrain {' '.join(words)} " in done.stdout.replace(
        f"megatrain {words[-1]}\n", f"megatrain {words[-1]} \n"
    )


def test_a_verb_is_a_file_in_commands_and_a_line_in_verbs():
    commands = ROOT / "launcher/commands"
    found = {".".join(path.relative_to(commands).with_suffix("").parts) for path in commands.rglob("*.py")}
    shared = {"options", "render", "start_run", "folds"}
    assert {name for name in found - shared if not name.endswith("__init__")} == set(VERBS)


@pytest.mark.parametrize(
    "arguments",
    [["nosuchverb"], ["plan"], ["plan", "tiny.yaml", "--nosuchoption"], ["train", "tiny.yaml", "--nproc", "0"]],
)
def test_misuse_is_2(folder, arguments):
    done = command(*arguments, cwd=folder)
    assert done.returncode == ExitCode.USAGE
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plan", "absent.yaml"], 2, "error: absent.yaml: cannot be read"),
        (
            ["plan", "tiny.yaml", "model.hiden_size=3"],
            2,
            "error: command line: model.hiden_size: 3: unknown key. Did you",
        ),
        (["plan", "tiny.yaml", "cluster.hardware=h1000"], 2, "error: cluster.hardware: 'h1000'"),
        (["plan", "tiny.yaml", "model.num_hidden_layers=900000"], 3, "error: nearest miss:"),
        (["plan", "tiny.yaml", "model.vocab_size=auto", "data.train.0.path=."], 4, "error: .: is not a prepared"),
        (["train", "tiny.yaml", "--dry-run", "data.train.0.path=gone"], 4, "error: data.train.0: gone"),
        (["train", "tiny.yaml", "--resume", "must"], 5, "error: --resume must"),
        (["train", "tiny.yaml", "--resume", "maybe"], 2, "error: --resume maybe"),
        (["finetune", "tiny.yaml"], 2, "Use `megatrain train`"),
        (["train", "tiny.yaml", "cluster.hardware=h200", "cluster.nodes=2"], 3, "Use `megatrain submit`"),
        (["config", "schema", "both"], 2, "must be pretrain or finetune"),
        (["checkpoint", "ls", "runs/none"], 2, "error: runs/none: there is no such"),
        (["tensorboard", "runs/none"], 2, "error: runs/none: there is no such"),
    ],
)
def test_a_users_mistake_has_its_exit_code_and_no_traceback(folder, arguments, code, said):
    done = command(*arguments, cwd=folder)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
    assert done.stdout == "" or "--dry-run" in arguments


def test_every_mistake_of_a_file_is_told_at_once(folder):
    (folder / "bad.yaml").write_text(
        TINY.replace("num_hidden_layers: 2", "num_hidden_layers: two").replace("steps: 20", "stps: 20"),
        encoding="utf-8",
    )
    done = command("config", "check", "bad.yaml", cwd=folder)
    assert done.returncode == ExitCode.USAGE
    lines = done.stderr.splitlines()
    assert any(line.startswith("error: bad.yaml:3: model.num_hidden_layers: 'two'") for line in lines)
    assert any("training.stps" in line and "Did you mean steps?" in line for line in lines)


def test_a_defect_keeps_its_traceback_and_is_1(folder):
    code = "import launcher.commands.render as r; del r.plan_text; from launcher.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", "tiny.yaml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.CRASH
    assert "Traceback" in done.stderr


def test_plan_json(folder):
    done = command("plan", "tiny.yaml", "--json", "parallel.tensor_parallel=2", cwd=folder)
    document = json.loads(done.stdout)
    assert document["chosen"]["tensor_parallel"] == 2
    assert list(document) == ["chosen", "candidates", "rejected", "assumed"]


def test_config_show_is_read_back_equal(folder):
    shown = command("config", "show", "tiny.yaml", "training.steps=7", cwd=folder).stdout
    assert parse_config(shown) == parse_config(TINY, overrides=["training.steps=7"])


def test_config_schema_describes_every_section():
    schema = json.loads(command("config", "schema", cwd=ROOT).stdout)
    assert {"run", "model", "data", "training", "slurm"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    tuned = json.loads(command("config", "schema", "finetune", cwd=ROOT).stdout)
    assert tuned == json.loads(command("config", "schema", "configs/quickstart-finetune.yaml", cwd=ROOT).stdout)
    assert "finetune" in tuned["properties"]


def test_a_dry_run_writes_nothing(folder):
    done = command("train", "tiny.yaml", "--dry-run", cwd=folder)
    assert done.returncode == 0
    assert "layouts fit" in done.stdout
    assert not (folder / "runs").exists()


def test_submit_dry_run_prints_the_script_and_nothing_else(folder):
    done = command("submit", "tiny.yaml", "--dry-run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n")
    assert "#SBATCH --nodes=1" in done.stdout
    assert not (folder / "runs").exists()
    with_warnings = command("submit", "tiny.yaml", "--dry-run", "training.steps=800", cwd=folder)
    assert "warning: data.train.0" in with_warnings.stderr
    assert with_warnings.stdout == done.stdout
    doomed = command("submit", "tiny.yaml", "--dry-run", "data.train.0.path=gone", cwd=folder)
    assert doomed.returncode == ExitCode.DATA
    assert "error: data.train.0: gone" in doomed.stderr
    assert doomed.stdout == done.stdout


def test_checkpoints_are_listed_as_json(folder):
    (folder / "runs/tiny").mkdir(parents=True)
    assert json.loads(command("checkpoint", "ls", "runs/tiny", "--json", cwd=folder).stdout) == []
    assert json.loads(command("checkpoint", "verify", "runs/tiny", "--json", cwd=folder).stdout) == []


def test_checkpoint_with_a_damaged_manifest_is_not_skipped(folder):
    step = folder / "runs/damaged/checkpoints/step-00000007"
    step.mkdir(parents=True)
    (step / "MANIFEST.json").write_text("{")
    assert (
        str(Path("runs/damaged/checkpoints/step-00000007"))
        in command("checkpoint", "ls", "runs/damaged", cwd=folder).stderr
    )
    verified = command("checkpoint", "verify", "runs/damaged", cwd=folder)
    assert verified.returncode == ExitCode.CHECKPOINT
    assert "step-00000007" in verified.stdout


def test_doctor(folder):
    done = command("doctor", "--json", cwd=folder)
    assert {"python", "torch", "slurm"} <= {check["name"] for check in json.loads(done.stdout)}
    assert done.returncode in (0, ExitCode.PREFLIGHT)


def test_version(tmp_path):
    from megatrain.version import __version__

    assert command("--version", cwd=tmp_path).stdout == f"megatrain {__version__}\n"


def test_export_says_how_to_load_it(tmp_path):
    run = make_trained_run(tmp_path)
    done = command("export", str(run), "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "14.2k parameters in bfloat16" in done.stdout
    assert "from_pretrained('out')" in done.stdout
    again = command("export", str(run), "out", cwd=tmp_path)
    assert again.returncode == ExitCode.USAGE
    assert again.stderr.strip() == "error: out: already exists; give the name of a new folder"
    wrong = command("export", str(run), "other", "--dtype", "int8", cwd=tmp_path)
    assert wrong.stderr.strip() == "error: --dtype int8: must be one of bfloat16, float16, float32"
    assert not (tmp_path / "other").exists()


def main_says(monkeypatch, capsys, *arguments):
    """Exit code and standard error of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["megatrain", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("verb", ["status", "train", "plan", "generate", "tensorboard"])
def test_a_name_that_is_too_long_is_one_line(monkeypatch, capsys, here, verb):
    code, said = main_says(monkeypatch, capsys, verb, "a" * 5000, *(["x"] if verb == "generate" else []))
    assert code in (ExitCode.USAGE, ExitCode.PREFLIGHT)
    assert said.startswith("error: aaa")
    assert said.endswith("File name too long\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07.yaml", "\udcff.yaml", "a\rb.yaml"])
def test_what_is_complained_of_does_not_steer_the_terminal(monkeypatch, capsys, here, name):
    code, said = main_says(monkeypatch, capsys, "plan", name)
    assert code == ExitCode.USAGE
    assert not has_control_characters(said.rstrip("\n"))


def test_a_step_of_thousands_of_digits(monkeypatch, capsys, folder):
    monkeypatch.chdir(folder)
    code, said = main_says(monkeypatch, capsys, "train", "tiny.yaml", "--dry-run", "--resume", "9" * 5000)
    assert code == ExitCode.USAGE
    assert "must be auto, must, never, or the step" in said
