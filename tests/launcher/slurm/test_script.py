"""The job script: whole, readable by sbatch and bash, and closed to whatever a configuration says."""

import re
import shlex
import subprocess
import sys

import pytest

from launcher.planning.plan import make_plan, resolve
from launcher.runs.prepare import run_folder
from launcher.slurm import script as job_script
from megatrain.base.errors import ConfigError
from megatrain.config.file import dump_config, parse_config
from megatrain.run.directory import RunDir
from tests.decided import DECIDED


@pytest.fixture
def render(tiny, here):
    def make(*overrides, **arguments):
        config = tiny(*overrides)
        chosen = make_plan(config).chosen
        resolved = resolve(config, chosen)
        return job_script.render(resolved, run_folder(resolved), chosen, **arguments)

    return make


def directives(script):
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, flags=re.MULTILINE))


def test_what_sbatch_is_told(render, here):
    script = render(
        "cluster.hardware=h100-sxm",
        "cluster.nodes=2",
        "cluster.gpus_per_node=4",
        "slurm.time=1-02:00:00",
        "slurm.partition=gpu",
        "slurm.account=me",
        "slurm.qos=high",
        "slurm.cpus_per_task=12",
        "slurm.signal_before_limit_seconds=240",
        "slurm.extra={constraint: a100&ib, exclusive: true, mail_type: ALL, overcommit: false}",
    )
    assert directives(script) == {
        "job-name": "tiny",
        "nodes": "2",
        "ntasks-per-node": "4",
        "gpus-per-node": "4",
        "time": "1-02:00:00",
        "output": f"{here}/runs/tiny/logs/slurm-%j.log",
        "open-mode": "append",
        "chdir": str(here),
        "signal": "USR2@240",
        "requeue": "",
        "partition": "gpu",
        "account": "me",
        "qos": "high",
        "cpus-per-task": "12",
        "constraint": "a100&ib",
        "exclusive": "",
        "mail-type": "ALL",
    }
    assert "export DS_ACCELERATOR=cuda" in script
    assert "CUDA_VISIBLE_DEVICES" not in script


def test_a_gpu_gets_its_share_of_the_cores_where_nobody_says(render, here):
    gpus = ("cluster.hardware=h100-sxm", "cluster.gpus_per_node=4")
    assert directives(render(*gpus, cores_per_gpu=14))["cpus-per-task"] == "14"
    assert directives(render(*gpus, "slurm.cpus_per_task=3", cores_per_gpu=14))["cpus-per-task"] == "3"
    assert "cpus-per-task" not in directives(render(*gpus, "slurm.extra.cpus_per_gpu=3", cores_per_gpu=14))
    assert "cpus-per-task" not in directives(render(cores_per_gpu=14)), "CPU ranks"
    (here / "site.sh").write_text("#SBATCH --cpus-per-task=7\n", encoding="utf-8")
    assert directives(render(*gpus, profile="./site.sh", cores_per_gpu=14))["cpus-per-task"] == "7"


def test_cpu_ranks_ask_for_no_gpus(render):
    script = render()
    assert "gpus-per-node" not in directives(script)
    assert "export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=\n" in script


@pytest.mark.parametrize(
    "line",
    [
        "export HF_TOKEN=S3CRET",
        "WANDB_API_KEY='S3CRET'",
        "export HTTPS_PROXY=http://me:S3CRET@proxy:3128",
        "curl -H 'Authorization: Bearer S3CRET' https://host",
    ],
)
def test_a_profile_with_a_secret_is_refused(render, here, line):
    (here / "site.sh").write_text(f"module load x\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"site.sh:2: holds .*job script can be read by others") as caught:
        render(profile="./site.sh")
    assert "S3CRET" not in str(caught.value)


def test_a_profile_may_read_a_secret_from_a_file(render, here):
    (here / "site.sh").write_text('export HF_TOKEN=$(cat ~/.hf)\nexport KEY="$OTHER"\n', encoding="utf-8")
    assert "HF_TOKEN=$(cat ~/.hf)" in render(profile="./site.sh")


def test_no_python_of_the_job_looks_into_the_working_directory(render):
    script = render()
    assert script.count(" -P -m ") == script.count(" -m ") == 3


def test_no_placeholder_is_left_and_bash_can_read_it(render):
    script = render(profile="infiniband")
    assert "@{" not in script
    assert "NCCL_IB_HCA" in script
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_every_directive_stands_before_the_first_command(render):
    lines = render("slurm.partition=gpu", profile="ethernet").splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])


@pytest.mark.parametrize(
    "override",
    [
        'slurm.partition="gpu\\n#SBATCH --nodes=99"',
        'slurm.account="a b"',
        'slurm.qos="$(reboot)"',
        'slurm.extra.constraint="a100\'"',
        'slurm.extra.comment="x\\ny"',
        'slurm.partition="`id`"',
    ],
)
def test_a_value_cannot_break_out_of_its_line(render, override):
    with pytest.raises(ConfigError, match=r"must be one word|holds control characters"):
        render(override)


def test_the_shell_sees_paths_as_one_word(render, here, tmp_path_factory, monkeypatch):
    hostile = tmp_path_factory.mktemp("x") / "$(touch owned)'; touch owned; '"
    script = render("run.name=safe", f"run.directory={hostile.parent}")
    assert f"export RUN={hostile.parent}/safe" in script
    assert f"export PYTHON={shlex.quote(sys.executable)}" in script
    with pytest.raises(ConfigError, match=r"run.directory.*must be one word"):
        render(f'run.directory="{hostile}"')


@pytest.mark.parametrize(
    ("option", "instead"), [("nodes", "cluster.nodes"), ("time", "slurm.time"), ("ntasks_per_node", "gpus_per_node")]
)
def test_options_of_megatrain_are_not_overridden(render, option, instead):
    with pytest.raises(ConfigError, match=rf"slurm.extra.{option}: .* Set .*{instead}"):
        render(f"slurm.extra.{option}=4")


def test_an_unknown_profile_lists_the_known(render):
    with pytest.raises(ConfigError, match="Known: apptainer, ethernet, infiniband, interface-suffix, modules, pyxis"):
        render(profile="infinband")
    with pytest.raises(ConfigError, match="cannot be read"):
        render(profile="./absent.sh")


def test_fine_tuning_starts_the_same_program(render, here, tiny):
    assert "-m megatrain.train " in render()
    base = RunDir("runs/base")
    base.path.mkdir(parents=True)
    base.config.write_text(dump_config(tiny("tokenizer.path=t", *DECIDED)), encoding="utf-8")
    config = parse_config(
        "{run: {name: tuned}, finetune: {base: runs/base, train: [a]}, training: {steps: 5, global_batch_size: 4}}"
    )
    chosen = make_plan(config).chosen
    script = job_script.render(resolve(config, chosen), run_folder(config), chosen)
    assert "-m megatrain.train " in script


def test_the_next_commands_can_be_copied(tmp_path):
    run = RunDir(tmp_path / "a b")
    commands = [shlex.split(line) for line in job_script.next_commands(run).splitlines()]
    assert [words[0] for words in commands] == ["follow", "state", "stop", "view"]
    assert [words[2] for words in commands] == ["logs", "status", "stop", "tensorboard"]
    assert {(words[1], words[-1]) for words in commands} == {("megatrain", str(run))}


def test_a_profile_brings_sbatch_lines_which_the_configuration_overrides(render, here):
    (here / "site.sh").write_text(
        "#SBATCH --partition=theirs\n#SBATCH --constraint=ib  # a fast network\n#SBATCH --exclusive\nmodule load x\n",
        encoding="utf-8",
    )
    script = render("slurm.partition=mine", profile="./site.sh")
    assert directives(script) | {"partition": "mine", "constraint": "ib", "exclusive": ""} == directives(script)
    assert script.count("#SBATCH --partition") == 1
    assert "\nmodule load x\n" in script
    assert "exclusive" not in directives(render("slurm.extra.exclusive=false", profile="./site.sh"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("#SBATCH --nodes=4", r"site.sh:1: megatrain sets --nodes itself. Set cluster.nodes"),
        ("#SBATCH -N 4", r"site.sh:1: '#SBATCH -N 4': must be #SBATCH --option"),
        ("#SBATCH --comment=$(reboot)", r"must be #SBATCH --option"),
    ],
)
def test_a_profile_cannot_say_just_anything_to_sbatch(render, here, line, said):
    (here / "site.sh").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        render(profile="./site.sh")


@pytest.mark.parametrize("profile", ["apptainer", "ethernet", "infiniband", "interface-suffix", "modules", "pyxis"])
def test_every_shipped_profile_makes_a_script_that_bash_can_read(render, profile):
    checked = subprocess.run(["bash", "-n"], input=render(profile=profile), text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
