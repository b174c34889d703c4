"""What can be known before a GPU is held is found, all at once, and with the exit code of its kind."""

import json

import pytest

from launcher.plan import make_plan
from launcher.preflight import check, demand, slurm_seconds
from launcher.run_files import prepare_run
from megatrain import config_file
from megatrain.errors import ExitCode, PreflightError
from tests.launcher.conftest import write_data


def findings(config, **arguments):
    return check(config, make_plan(config).chosen, **arguments)


def texts(config, **arguments):
    return [finding.text for finding in findings(config, **arguments)]


def test_a_run_that_may_start(tiny, here):
    write_data(here / "data/train")
    assert findings(tiny()) == []
    assert not (here / "runs").exists(), "a check writes nothing"


def test_all_at_once(tiny, here):
    write_data(here / "data/train", vocab_size=600)
    write_data(here / "data/other", tokenizer="b")
    config = tiny(
        "data.train=[{path: data/train}, {path: data/absent}, {path: data/other}]",
        "data.validation=[{path: data/gone}]",
        'slurm.time="1"',
    )
    found = "\n".join(texts(config, resume="must"))
    for part in (
        "--resume must",
        "data.train.1: data/absent",
        "data.validation.0: data/gone",
        "model.vocab_size: 512: the data holds ids up to 599",
        "different tokenizers",
        "slurm.signal_lead_seconds: 180",
    ):
        assert part in found


def test_errors_are_raised_together_with_the_code_of_the_first(tiny, here):
    config = tiny("data.train=[{path: data/a}, {path: data/b}]")
    with pytest.raises(PreflightError) as caught:
        demand(findings(config))
    assert len(str(caught.value).splitlines()) == 2
    assert caught.value.exit_code == ExitCode.DATA


def test_the_sequence_length_must_divide_the_blocks(tiny, here):
    write_data(here / "data/train")
    (text,) = texts(tiny("data.sequence_length=100"))
    assert "data.sequence_length: 100: does not divide" in text


def test_too_little_data(tiny, here):
    write_data(here / "data/train", tokens=100)
    (found,) = findings(tiny())
    assert (found.level, found.code) == ("error", ExitCode.DATA)
    assert "100 tokens: not one sequence of 128" in found.text


def test_many_epochs_are_a_warning(tiny, here):
    write_data(here / "data/train", tokens=128 * 16 + 1)  # 16 rows
    assert findings(tiny("training.steps=8")) == []  # 64 samples: 4 times
    (found,) = findings(tiny("training.steps=10"))
    assert found.level == "warning"
    assert "reads it 5.0 times" in found.text
    assert demand([found]) == [found]


def test_room_for_the_checkpoints(tiny, here):
    write_data(here / "data/train")
    (found,) = findings(tiny("checkpoint.keep_last=1000000000"))
    assert (found.level, "checkpoint.keep_last" in found.text) == ("warning", True)
    huge = tiny("model.num_hidden_layers=20000", "model.hidden_size=8192", "model.intermediate_size=8192")
    plan = make_plan(tiny()).chosen
    assert [finding.level for finding in check(huge, plan, as_job=False)] == ["error"]


def test_a_run_of_another_model(tiny, here):
    write_data(here / "data/train")
    run = prepare_run(tiny(), make_plan(tiny()).chosen)
    run.metrics.write_text("{}\n", encoding="utf-8")
    (text,) = texts(tiny("model.num_hidden_layers=3"))
    assert "model.num_hidden_layers: 3: runs/tiny was started with 2" in text


def test_fine_tuning(tiny, here):
    base = prepare_run(tiny("tokenizer.path=tokenizer"), make_plan(tiny()).chosen)
    config = config_file.parse(
        "{run: {name: t}, finetune: {base: runs/tiny, train: [a.jsonl], validation: [b.jsonl]},"
        " training: {steps: 5, global_batch_size: 4}}"
    )
    found = "\n".join(texts(config))
    for part in (
        "runs/tiny has no checkpoint yet",
        "finetune.train: a.jsonl",
        "finetune.validation: b.jsonl",
        "tokenizer.path",
    ):
        assert part in found
    (here / "a.jsonl").touch()
    (here / "b.jsonl").touch()
    (here / "tokenizer").mkdir()
    (here / "tokenizer/tokenizer.json").write_text(json.dumps({}), encoding="utf-8")
    (base.step(10)).mkdir(parents=True)
    (base.step(10) / "MANIFEST.json").touch()
    assert findings(config) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("2:30:15", 9015),
        ("1-2", 93600),
        ("1-2:30", 95400),
        ("1-02:30:15", 95415),
    ],
)
def test_slurm_times(text, seconds):
    assert slurm_seconds(text) == seconds
