"""A run's folder is written whole, and never over another run."""

import json
import shutil

import pytest

from launcher.planning.plan import make_plan
from launcher.runs.prepare import prepare_run, run_folder
from megatrain.base.errors import CheckpointError, ConfigError, DataError, PreflightError
from megatrain.config.file import load_config, parse_config
from megatrain.huggingface.config_json import config_json
from megatrain.run.attempts import Attempt, write_attempts
from megatrain.run.directory import MANIFEST
from megatrain.run.inputs import kept_tokenizer_sha256
from tests.launcher.conftest import write_tokenizer


def prepare(config, **arguments):
    return prepare_run(config, make_plan(config).chosen, **arguments)


def save_checkpoint(run, step):
    run.step(step).mkdir(parents=True)
    (run.step(step) / MANIFEST).write_text("{}", encoding="utf-8")


def test_what_is_written(tiny, here):
    run = prepare(tiny())
    assert str(run) == "runs/tiny"
    resolved = load_config(run.config)
    plan = json.loads(run.plan.read_text())
    settings = json.loads(run.ds_config.read_text())
    assert resolved.parallel.zero_stage == plan["zero_stage"] == settings["zero_optimization"]["stage"] == 1
    assert resolved.training.micro_batch_size == settings["train_micro_batch_size_per_gpu"]
    assert plan["memory_bytes"]["total"] > 0
    assert plan["step_seconds"] > 0
    assert not list(run.path.glob(".*")), "no temporary file is left"


@pytest.mark.parametrize(
    "change",
    [
        "model.num_hidden_layers=3",
        "model.vocab_size=640",
        "data.train.0.path=data/other",
        "data.sequence_length=64",
        "optimizer.name=adamw",
        "run.seed=2",
    ],
)
def test_another_model_or_data_is_refused_once_the_run_has_a_checkpoint(tiny, here, change):
    run = prepare(tiny())
    before = run.config.read_text()
    save_checkpoint(run, 10)
    field = change.partition("=")[0]
    if field == "optimizer.name":  # the same value
        prepare(tiny(change))
        return
    with pytest.raises(ConfigError, match=rf"{field.removesuffix('.0.path')}.*was started with"):
        prepare(tiny(change))
    assert run.config.read_text() == before


@pytest.mark.parametrize(
    "change",
    [
        ["parallel.tensor_parallel=2"],
        ["parallel.zero_stage=3"],
        ["cluster.gpus_per_node=4"],
        ["training.steps=40"],
        ["training.global_batch_size=16"],
        ["optimizer.learning_rate=1e-5"],
        ["data.prefetch=4"],
        ["monitor.log_interval_steps=1"],
    ],
)
def test_resume_with_another_layout_or_length(tiny, here, change):
    run = prepare(tiny())
    save_checkpoint(run, 10)
    prepare(tiny(*change))
    key, _, value = change[0].partition("=")
    section, name = key.split(".")
    assert str(getattr(getattr(load_config(run.config), section), name)) in (value, str(float(value)))


def test_a_run_that_never_started_may_be_changed(tiny, here):
    prepare(tiny())
    run = prepare(tiny("model.num_hidden_layers=3"))
    assert load_config(run.config).model.num_hidden_layers == 3


def test_resume_never_may_follow_progress_which_the_attempt_sets_aside(tiny, here):
    run = prepare(tiny(), resume="never")
    save_checkpoint(run, 10)
    prepare(tiny(), resume="never")
    assert run.steps() == [10], "not before the run is claimed"


def an_attempt(end_step):
    return Attempt(job=None, host="h", pid=1, ranks=2, started=1.0, start_step=0, ended=2.0, end_step=end_step)


@pytest.mark.parametrize(
    ("leave", "says"),
    [
        (lambda run: write_attempts(run, [an_attempt(20)]), r"attempts\.json tells of step 20 saved"),
        (lambda run: run.metrics.write_text('{"step": 101}\n'), r"metrics\.jsonl reaches step 101"),
        (lambda run: run.step(20).mkdir(parents=True), r"step 20 is there without its MANIFEST\.json"),
        (lambda run: run.checkpoints.touch(), r"checkpoints: cannot be read: Not a directory"),
    ],
    ids=["attempts", "metrics", "manifest", "unreadable"],
)
def test_run_whose_checkpoints_are_gone_does_not_start_over(tiny, here, leave, says):
    config = tiny("checkpoint.interval_steps=100")
    run = prepare(config)
    leave(run)
    with pytest.raises(CheckpointError, match=says) as caught:
        prepare(config)
    assert "--resume never" in str(caught.value) or run.checkpoints.is_file()
    if not run.checkpoints.is_file():
        prepare(config, resume="never")


def test_run_killed_before_its_first_checkpoint_starts_over(tiny, here):
    config = tiny("checkpoint.interval_steps=100")
    run = prepare(config)
    run.metrics.write_text('{"step": 100}\n', encoding="utf-8")
    write_attempts(run, [an_attempt(0)])
    prepare(config)


def test_resume_must_and_a_step(tiny, here):
    with pytest.raises(CheckpointError, match=r"--resume must: runs/tiny has no checkpoint"):
        prepare(tiny(), resume="must")
    run = prepare(tiny())
    save_checkpoint(run, 10)
    prepare(tiny(), resume="must")
    prepare(tiny(), resume="10")
    with pytest.raises(CheckpointError, match=r"--resume 11: runs/tiny has no checkpoint of that step; it has: 10"):
        prepare(tiny(), resume="11")


@pytest.mark.parametrize("resume", ["yes", "-1", "", "1.5", "²", "٤", "9" * 5000])
def test_any_other_resume_is_a_mistake(tiny, here, resume):
    with pytest.raises(ConfigError, match="must be auto, must, never, or the step"):
        prepare(tiny(), resume=resume)


def test_a_folder_that_cannot_be_written(tiny, here):
    (here / "runs").write_text("a file", encoding="utf-8")
    with pytest.raises(PreflightError, match=r"run.directory: runs/tiny: cannot be written"):
        prepare(tiny())


class TestTheSameTokenizerElsewhere:
    """A run knows its tokenizer by what it is, not by where it lay."""

    @pytest.fixture
    def run(self, tiny, here):
        write_tokenizer(here / "tok", "<s>")
        run = prepare(tiny("tokenizer.path=tok"))
        save_checkpoint(run, 10)
        return run

    def test_the_copy_stays_whatever_becomes_of_the_original(self, tiny, here, run):
        before = {file.name: file.read_bytes() for file in run.tokenizer.iterdir()}
        assert before["tokenizer.json"] == (here / "tok/tokenizer.json").read_bytes()
        write_tokenizer(here / "tok", "</s>")
        prepare(tiny("tokenizer.path=tok"))
        (here / "tok").rename(here / "gone")
        prepare(tiny("tokenizer.path=tok"))
        assert {file.name: file.read_bytes() for file in run.tokenizer.iterdir()} == before

    def test_resume_from_another_path_of_the_same(self, tiny, here, run):
        kept = (here / "tok/tokenizer.json").read_bytes()
        prepare(tiny(f"tokenizer.path={here}/tok"))
        (here / "tok").rename(here / "moved")
        prepare(tiny("tokenizer.path=moved/tokenizer.json"))
        prepare(tiny())  # none is named: its own
        assert (run.tokenizer / "tokenizer.json").read_bytes() == kept

    def test_another_tokenizer_is_refused(self, tiny, here, run):
        write_tokenizer(here / "other", "</s>")
        with pytest.raises(ConfigError, match=r"tokenizer.path: 'other': runs/tiny was started with 'tok'"):
            prepare(tiny("tokenizer.path=other"))
        with pytest.raises(DataError, match=r"tokenizer.path: gone: cannot be read"):
            prepare(tiny("tokenizer.path=gone"))

    def test_a_run_from_before_there_were_copies_makes_them(self, tiny, here, run):
        run.inputs.unlink()
        shutil.rmtree(run.tokenizer)
        prepare(tiny("tokenizer.path=tok"))
        assert (run.tokenizer / "tokenizer.json").read_bytes() == (here / "tok/tokenizer.json").read_bytes()
        run.inputs.unlink()
        shutil.rmtree(run.tokenizer)
        (here / "tok").rename(here / "gone")
        prepare(tiny("tokenizer.path=tok"))
        assert not run.tokenizer.exists()

    def test_a_run_that_has_not_begun_takes_the_present_one(self, tiny, here):
        for token in ("<s>", "</s>"):
            expected = write_tokenizer(here / "tok", token)
            run = prepare(tiny("tokenizer.path=tok"))
            assert kept_tokenizer_sha256(run) == expected


class TestTheSameBaseElsewhere:
    FINETUNE = """
    run: {name: tuned}
    finetune: {base: llama, train: [a.jsonl], sequence_length: 32}
    training: {steps: 5, global_batch_size: 4}
    cluster: {hardware: cpu, nodes: 1, gpus_per_node: 1}
    """

    @pytest.fixture
    def tune(self, tiny, here):
        write_tokenizer(here / "llama", "<s>")
        content = config_json(tiny().model, max_position_embeddings=64)
        (here / "llama/config.json").write_text(json.dumps(content), encoding="utf-8")
        (here / "llama/model.safetensors").write_bytes(b"weights")
        (here / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n', encoding="utf-8")
        return lambda *overrides: prepare(parse_config(self.FINETUNE, overrides=overrides))

    def test_moved_deleted_or_under_its_first_name(self, here, tune):
        save_checkpoint(tune(), 5)
        (here / "llama").rename(here / "moved")
        tune("finetune.base=moved")
        tune()
        tune("finetune.base=gone")

    def test_another_one_is_refused(self, here, tune):
        save_checkpoint(tune(), 5)
        shutil.copytree(here / "llama", here / "other")
        (here / "other/model.safetensors").write_bytes(b"Weights")
        with pytest.raises(ConfigError, match=r"finetune.base: 'other': runs/tuned was started with 'llama'"):
            tune("finetune.base=other")


def test_the_name_of_the_folder(tiny):
    assert str(run_folder(tiny("run.directory=/scratch/me", "run.name=x"))) == "/scratch/me/x"
