"""A fine-tuning's examples are all read before a GPU is held."""

import json

import pytest

from launcher.planning.examples import example_set
from launcher.planning.plan import make_plan
from launcher.planning.resolve import complete_model, tokenizer_path
from launcher.preflight.checks import check
from launcher.runs.prepare import prepare_run
from megatrain.base.errors import DataError, ExitCode
from megatrain.base.files import write_json
from megatrain.checkpoint.manifest import FileRecord as CheckpointFile
from megatrain.checkpoint.manifest import Manifest as CheckpointManifest
from megatrain.checkpoint.manifest import write_manifest
from megatrain.config.file import parse_config
from megatrain.data.examples.identity import check_same_examples, identity
from megatrain.data.examples.packing import pack
from tests.tokenizer_kinds import write_tokenizer

FINETUNE = """
run: {name: tuned}
finetune: {base: runs/tiny, train: [a.jsonl], sequence_length: 64}
training: {steps: 1, global_batch_size: 4}
"""


@pytest.fixture
def finetune(tiny, here):
    """A function from overrides to a fine-tuning of a run that is there, on 40 examples."""
    write_tokenizer(here / "tokenizer", "byte_level")
    base = prepare_run(tiny("tokenizer.path=tokenizer"), make_plan(tiny()).chosen)
    base.step(10).mkdir(parents=True)
    (base.step(10) / "MANIFEST.json").touch()
    pairs = [{"prompt": f"who {number}", "response": " me"} for number in range(40)]
    (here / "a.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return lambda *overrides: parse_config(FINETUNE, overrides=list(overrides))


def findings(config, **arguments):
    return check(config, make_plan(config).chosen, as_job=False, **arguments)


def test_examples_that_may_be_learnt_from(finetune) -> None:
    assert findings(finetune()) == []


def test_epochs_become_tokens_of_packed_rows(finetune) -> None:
    by_epochs = complete_model(finetune("training.steps=null", "training.epochs=2.5"))
    rows = -(-40 // 9)
    assert by_epochs.training.epochs is None
    assert by_epochs.training.tokens is not None
    assert by_epochs.training.tokens % 64 == 0
    assert by_epochs.training.tokens // 64 == pytest.approx(2.5 * rows, abs=3)
    assert by_epochs.total_steps == -(-by_epochs.training.tokens // 64 // 4)
    larger = complete_model(finetune("training.steps=null", "training.epochs=2.5", "training.global_batch_size=8"))
    assert larger.training.tokens == by_epochs.training.tokens


def test_many_epochs_are_warned_of_and_too_many_refused(finetune) -> None:
    (warning,) = findings(finetune("training.steps=20"))
    assert warning.level == "warning"
    assert "40 examples" in warning.text
    assert "20 steps are" in warning.text
    (error,) = findings(finetune("training.steps=400"))
    assert (error.level, error.code) == ("error", ExitCode.DATA)
    assert "more than finetune.max_epochs (50)" in error.text
    (warning,) = findings(finetune("training.steps=400", "finetune.max_epochs=1e6"))
    assert warning.level == "warning"


def test_what_is_cut_is_told(finetune, here) -> None:
    (here / "a.jsonl").write_text(json.dumps({"prompt": "who " * 99, "response": " me"}) + "\n")
    (found,) = findings(finetune())
    assert found.level == "warning"
    assert found.text.startswith("finetune.train: a.jsonl: of 1 examples, cut to 64 tokens, 1 lose ")


def test_every_bad_example_is_an_error_of_its_own(finetune, here) -> None:
    (here / "a.jsonl").write_text('{"prompt": "p"}\n{"prompt": "\\ud83d", "response": "r"}\n')
    first, second = findings(finetune())
    assert first.text.startswith("finetune.train: a.jsonl:1: response: is not there")
    assert second.text.startswith("finetune.train: a.jsonl:2: prompt: half a surrogate pair")
    assert {first.code, second.code} == {ExitCode.DATA}


def test_validation_that_is_trained_on(finetune) -> None:
    (found,) = findings(finetune("finetune.validation=[./*.jsonl]"))
    assert "a.jsonl: is the same data as finetune.train.0" in found.text


def test_sequences_longer_than_the_bases(finetune, tiny) -> None:
    length = tiny().sequence_length * 2
    found = findings(finetune(f"finetune.sequence_length={length}"))
    assert any(f"finetune.sequence_length: {length:,}: the base was trained on" in one.text for one in found)


def test_examples_that_changed_since_the_checkpoint(finetune, here) -> None:
    config = complete_model(finetune())
    run = prepare_run(config, make_plan(config).chosen)
    run.step(1).mkdir(parents=True)
    assert config.model is not None
    loader = {"position": 4, **identity(example_set(config, tokenizer_path(config)).rows, config.run.seed)}
    state = {"step": 1, "model": config.model.model_dump(mode="json"), "loader": loader}
    write_json(run.step(1) / "state.json", state)
    files = dict.fromkeys(("state.json", ".metadata"), CheckpointFile(bytes=0, sha256="0" * 64))
    manifest = CheckpointManifest(step=1, saved_at="", world_size=2, layout="", version="0", files=files)
    write_manifest(run.step(1), manifest)
    assert findings(finetune()) == []
    with open(here / "a.jsonl", "a") as file:
        file.write('{"prompt": "p", "response": "r"}\n')
    (found,) = findings(finetune())
    assert "the examples are not the ones that the checkpoint was trained on (examples changed)" in found.text
    assert found.code is ExitCode.DATA


def test_a_checkpoint_of_the_earlier_format_is_told_as_such() -> None:
    rows = pack([], 8, 0)
    now = identity(rows, 3)
    earlier = {name: value for name, value in now.items() if name != "format"} | {"position": 0}
    check_same_examples(earlier, now)  # the same tokens all the same
    with pytest.raises(DataError, match="of a version that encoded examples otherwise"):
        check_same_examples(earlier | {"examples": "0" * 16}, now)
    with pytest.raises(DataError, match=r"learnt the last turn of dialogues only.*task.train_on: last_turn"):
        check_same_examples(earlier | {"examples": "0" * 16, "format": 2}, now)


def test_how_the_turns_of_dialogues_are_found_is_told(finetune, here) -> None:
    config = finetune()
    beside = next(here.glob("runs/tiny/**/tokenizer.json")).parent
    (beside / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    chat = [{"role": role, "content": "who"} for role in ("user", "assistant")]
    (here / "a.jsonl").write_text((json.dumps({"messages": chat * 2}) + "\n") * 40)
    (found,) = (one for one in findings(config) if one.level == "note" and "turns" in one.text)
    assert "80 turns of the assistant are learnt, found by rendering each dialogue" in found.text
