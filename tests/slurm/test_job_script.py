"""The job's life, on a real cluster, with a stand-in for the trainer: what the script makes of each way to end."""

import subprocess
from pathlib import Path

import pytest

from launcher import slurm
from launcher.plan import make_plan, resolve
from launcher.run_files import prepare_run
from megatrain import config_file
from megatrain.errors import PreflightError
from tests.slurm.conftest import wait_until

CONFIG = """
run: {name: job}
model: {num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 4, intermediate_size: 128, vocab_size: 512}
data: {sequence_length: 128, train: [{path: data/train}]}
training: {steps: 20, global_batch_size: 8}
cluster: {hardware: cpu, nodes: 2, gpus_per_node: 2}
slurm: {time: "5", cpus_per_task: 2}
"""

# The stand-in keeps its own count of starts, and says who it is.
STAND_IN = """
import os, pathlib, signal, sys, time
run, rank = pathlib.Path(sys.argv[1]), int(os.environ["SLURM_PROCID"])
start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
names = ["SLURM_NTASKS", "SLURM_LOCALID", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR", "SLURMD_NODENAME"]
names += ["OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"]
(run / f"rank-{rank}.{start}").write_text(" ".join([*sys.argv[2:], *(os.environ[n] for n in names)]))
def save():
    if rank == 0:
        (run / "checkpoints" / f"step-{start + 1:08d}").mkdir(parents=True)
def stop(number, frame):
    save()
    time.sleep(0.5 * rank)  # the ranks do not end together
    sys.exit(75)
signal.signal(signal.SIGUSR2, stop)
signal.signal(signal.SIGTERM, stop)
"""


@pytest.fixture
def submit(cluster, tmp_path, monkeypatch):
    """submit(code): the job, its ranks running STAND_IN + code."""
    monkeypatch.chdir(tmp_path)

    def make(code: str) -> tuple[slurm.Job, Path]:
        (tmp_path / "stand_in.py").write_text(STAND_IN + code, encoding="utf-8")
        config = config_file.parse(CONFIG)
        chosen = make_plan(config).chosen
        run = prepare_run(config, chosen)
        script = slurm.render(resolve(config, chosen), run, chosen)
        return slurm.submit(script.replace("-m megatrain.train", str(tmp_path / "stand_in.py")), run), run.path

    return make


def test_every_rank_knows_who_it_is(cluster, submit, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    job, run = submit("")
    assert cluster.wait_for(job.id, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    said = [(run / f"rank-{rank}.0").read_text().split() for rank in range(4)]
    assert {tuple(words[:3]) for words in said} == {("--resume", "auto", "4")}
    assert [words[3] for words in said] == ["0", "1", "0", "1"]
    first_node = said[0][7]
    assert {(words[4], words[5]) for words in said} == {(first_node, str(20_000 + int(job.id) % 10_000))}
    assert {words[6] for words in said} == {"cpu"}
    assert len({words[7] for words in said}) == 2
    assert {tuple(words[8:]) for words in said} == {("2", "2")}


def test_a_stopped_run_is_queued_again_and_goes_on_in_one_log(cluster, submit):
    job, run = submit("if start < 1: time.sleep(60)\nprint('the end', flush=True)")
    wait_until(lambda: len(list(run.glob("rank-*.0"))) == 4)
    subprocess.run(["scancel", "--signal=USR2", job.id], check=True, timeout=30)
    assert cluster.wait_for(job.id, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    log = job.log.read_text()
    assert "megatrain: saved step-00000001; queued again" in log
    assert log.count("the end") == 4
    assert len(list(run.glob("rank-*.1"))) == 4
    assert not list((run / "logs").glob("stopped-*"))


def test_a_run_that_stops_without_progress_is_not_queued_again(cluster, submit):
    job, _run = submit("sys.exit(75)")
    fields = cluster.wait_for(job.id, "COMPLETED", "FAILED")
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", "75:0", "0")
    assert "not queued again" in job.log.read_text()


def test_a_rank_that_fails_ends_the_job_at_once(cluster, submit):
    job, _run = submit("if rank == 3: sys.exit(1)\nsignal.signal(signal.SIGTERM, signal.SIG_DFL)\ntime.sleep(60)")
    fields = cluster.wait_for(job.id, "FAILED", seconds=30)
    assert fields["Restarts"] == "0"
    assert fields["ExitCode"] != "0:0"


def test_what_submit_says_stops_the_job_for_good(cluster, submit):
    job, run = submit("time.sleep(60)")
    wait_until(lambda: len(list(run.glob("rank-*.0"))) == 4)
    commands = dict(line.split(maxsplit=1) for line in slurm.next_commands(job, run).splitlines())
    subprocess.run(commands["stop"], shell=True, check=True, timeout=30)
    fields = cluster.wait_for(job.id, "FAILED", "COMPLETED")
    assert (fields["ExitCode"], fields["Restarts"]) == ("75:0", "0")
    assert (run / "checkpoints" / "step-00000001").is_dir()


def test_a_cancelled_job_is_not_queued_again(cluster, submit):
    job, run = submit("time.sleep(60)")
    wait_until(lambda: len(list(run.glob("rank-*.0"))) == 4)
    subprocess.run(["scancel", job.id], check=True, timeout=30)
    fields = cluster.wait_for(job.id, "CANCELLED", seconds=30)
    assert fields["Restarts"] == "0"
    assert not list(run.glob("rank-*.1"))


def test_what_can_never_start_is_refused_before_it_is_queued(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_file.parse(CONFIG)
    chosen = make_plan(config).chosen
    resolved = resolve(config, chosen)
    script = slurm.render(resolved, prepare_run(config, chosen), chosen)
    assert "to start at" in slurm.test_only(script)
    with pytest.raises(PreflightError, match=r"^sbatch: .*partition"):
        slurm.test_only(script.replace("--nodes=2", "--partition=nowhere"))
    with pytest.raises(PreflightError, match=r"^sbatch: "):
        slurm.test_only(script.replace("--nodes=2", "--nodes=3"))
