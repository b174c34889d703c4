"""What can be known before a GPU is held is found, all at once, and with the exit code of its kind."""

import collections
import hashlib
import json
import os
import shutil

import pytest

from launcher.planning.plan import make_plan, resolve
from launcher.preflight.checks import check, demand, examine, jobs_needed, slurm_seconds
from launcher.preflight.on_disk import check_files
from launcher.runs.prepare import prepare_run, run_folder
from megatrain.base.errors import ExitCode, PreflightError
from megatrain.checkpoint.manifest import FileRecord as CheckpointFile
from megatrain.checkpoint.manifest import Manifest as CheckpointManifest
from megatrain.checkpoint.manifest import write_manifest
from megatrain.config.file import parse_config
from megatrain.data.folder.manifest import SHORT_HASH_DIGITS, read_manifest
from megatrain.huggingface.config_json import config_json
from tests import tokenizer_kinds
from tests.launcher.conftest import write_data, write_tokenizer


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
        "slurm.signal_before_limit_seconds: 180",
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


def test_what_a_killed_save_left_counts_as_free(tiny, here, monkeypatch):
    write_data(here / "data/train")
    config = tiny()
    each = 12 * config.model.parameters  # fp32 weight and both moments
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr("launcher.preflight.checks.shutil.disk_usage", lambda path: usage(free=each))
    (found,) = findings(config)
    assert found.level == "error"
    assert f"{each / 2**20:,.1f} MiB each" in found.text
    left = run_folder(config).checkpoints / ".tmp-step-00000005.local.1.1"
    left.mkdir(parents=True)
    with open(left / "__0_0.distcp", "wb") as file:
        file.truncate(each * (config.checkpoint.keep_last + 1))
    assert findings(config) == []


@pytest.mark.parametrize("content", [b"x", b"[]", b"[" * 3000, b'{"step": "x"}', b"\xff"])
def test_a_state_that_cannot_be_read_is_a_finding(tiny, here, content):
    write_data(here / "data/train")
    config = tiny()
    saved(run_folder(config), 4, config.model.model_dump(mode="json"))
    (run_folder(config).step(4) / "state.json").write_bytes(content)
    (found,) = findings(config)
    assert (found.level, found.code) == ("error", ExitCode.CHECKPOINT)
    assert "step-00000004/state.json" in found.text


def test_a_run_of_another_model(tiny, here):
    write_data(here / "data/train")
    run = prepare_run(tiny(), make_plan(tiny()).chosen)
    run.metrics.write_text("{}\n", encoding="utf-8")
    (text,) = texts(tiny("model.num_hidden_layers=3"))
    assert "model.num_hidden_layers: 3: runs/tiny was started with 2" in text


def test_fine_tuning(tiny, here):
    tokenizer_kinds.write_tokenizer(here / "tokenizer", "byte_level")
    base = prepare_run(tiny("tokenizer.path=tokenizer"), make_plan(tiny()).chosen)
    shutil.rmtree(here / "tokenizer")  # the run has its own
    config = parse_config(
        "{run: {name: t}, finetune: {base: runs/tiny, train: [a.jsonl], validation: [b.jsonl]},"
        " training: {steps: 5, global_batch_size: 4}}"
    )
    found = "\n".join(texts(config))
    for part in (
        "runs/tiny has no checkpoint yet",
        "finetune.train: a.jsonl",
        "finetune.validation: b.jsonl",
    ):
        assert part in found
    (here / "a.jsonl").write_text('{"prompt": "p", "response": "r"}\n{"prompt": "p"}\n', encoding="utf-8")
    (here / "b.jsonl").touch()
    found = "\n".join(texts(config))
    assert "finetune.train: a.jsonl:2: response: is not there as text" in found
    assert "finetune.validation: b.jsonl: holds no examples" in found
    for name in ("a", "b"):
        (here / f"{name}.jsonl").write_text(f'{{"prompt": "p", "response": "{name}"}}\n', encoding="utf-8")
    (base.step(10)).mkdir(parents=True)
    (base.step(10) / "MANIFEST.json").touch()
    once = config.model_copy(update={"training": config.training.model_copy(update={"steps": 1})})
    assert findings(once) == []
    (here / "llama").mkdir()
    content = config_json(tiny().model, max_position_embeddings=64)
    (here / "llama/config.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer_kinds.write_tokenizer(here / "llama", "byte_level")
    finetune = config.finetune.model_copy(update={"base": "llama"})
    (text,) = texts(once.model_copy(update={"finetune": finetune}))
    assert text.startswith("finetune.base: llama: has no *.safetensors")


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


def test_what_no_layout_allows_is_told_beside_all_else(tiny, here):
    config = tiny("training.global_batch_size=7", "parallel.tensor_parallel=1", "data.validation=[{path: data/gone}]")
    found = examine(config)
    assert found.result is None
    said = "\n".join(finding.text for finding in found.errors)
    for part in ("data-parallel ranks do not divide training.global_batch_size (7)", "data/train", "data/gone"):
        assert part in said
    with pytest.raises(PreflightError):
        found.demand()
    assert found.to_json() == {
        "ok": False,
        "errors": [finding.text for finding in found.errors],
        "warnings": [],
        "notes": [],
        "plan": None,
    }


def test_a_run_that_may_start_has_a_plan(tiny, here):
    write_data(here / "data/train")
    found = examine(tiny(), as_job=True)
    assert found.demand() is found.result
    assert found.to_json()["ok"] is True
    assert found.to_json()["plan"]["data_parallel"] == 2


def test_an_index_of_other_bytes(tiny, here):
    write_data(here / "data/train")
    (here / "data/train/index.npz").write_bytes(b"other")
    (found,) = findings(tiny())
    assert "data.train.0: data/train/index.npz: is damaged" in found.text
    assert found.code == ExitCode.DATA


def test_shards_that_are_missing_or_cut_short_or_no_files(tmp_path, tiny, here):
    write_data(here / "data/train", tokens=4096 * 64 * 4)
    os.truncate(here / "data/train/shard-00001.tar", 9)
    (here / "data/train/shard-00002.tar").unlink()
    (here / "data/train/shard-00003.tar").unlink()
    os.mkfifo(here / "data/train/shard-00003.tar")
    (found,) = check_files("data.train.0", "data/train", read_manifest("data/train"))
    assert "data.train.0: data/train/shard-00001.tar: has 9 bytes, not" in found.text
    assert "shard-00002.tar: is missing (No such file or directory); shard-00003.tar: is no regular file" in found.text
    assert "shard-00000" not in found.text


def test_another_tokenizer_than_the_datas(tiny, here):
    write_data(here / "data/train", tokenizer_sha256=write_tokenizer(here / "tok", "<s>"))
    assert findings(tiny("tokenizer.path=tok")) == []
    write_tokenizer(here / "tok", "</s>")
    (text,) = texts(tiny("tokenizer.path=tok"))
    assert "tokenizer.path: tok: is not the tokenizer that the data was prepared with" in text
    (text,) = texts(tiny("tokenizer.path=gone"))
    assert "tokenizer.path: gone: cannot be read: No such file" in text
    (text,) = texts(tiny("tokenizer.path=/etc/passwd"))
    assert "tokenizer.path: /etc/passwd: is no tokenizer.json" in text


ROBERTA = (
    "model={family: bert, num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 4, vocab_size: 512, "
    "position_offset: 2}",
    "task.name=masked_lm",
    "tokenizer.path=tok",
)


def test_a_roberta_needs_padding_where_its_positions_begin(tiny, here):
    """Else it would be refused at the export, after the run."""

    def tokenizer(*tokens, **config):
        write_tokenizer(here / "tok", *tokens, **config)
        content = json.loads((here / "tok/tokenizer.json").read_text())
        for token in content["added_tokens"]:  # as the `tokenizers` library reads it
            token |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
        (here / "tok/tokenizer.json").write_text(json.dumps(content))
        sha256 = hashlib.sha256((here / "tok/tokenizer.json").read_bytes()).hexdigest()
        shutil.rmtree(here / "data/train", ignore_errors=True)
        write_data(here / "data/train", tokenizer_sha256=sha256)

    tokenizer("</s>", "<mask>", first_id=2, pad_token="b")
    assert findings(tiny(*ROBERTA)) == []
    tokenizer("</s>", "<mask>", "<pad>", first_id=2)
    (found,) = findings(tiny(*ROBERTA))
    assert (found.level, found.code) == ("error", ExitCode.USAGE)
    assert found.text.startswith("model.position_offset: 2: positions of a RoBERTa begin behind the id of padding")
    assert "tok pads with '<pad>', id 4" in found.text
    assert "Set it to 5, or to 0" in found.text
    assert findings(tiny(*ROBERTA, "model.position_offset=5")) == []
    assert findings(tiny(*ROBERTA, "model.position_offset=0")) == [], "a BERT has any"
    assert [one.level for one in findings(tiny(*ROBERTA, "model.position_offset=0", "model.model_type=roberta"))] == [
        "error"
    ]
    config = tiny(*ROBERTA)
    saved(run_folder(config), 4, config.model.model_dump(mode="json"))
    (found,) = findings(config)
    assert found.level == "warning", "a run that has begun cannot change it any more"
    tokenizer("</s>", "<mask>", first_id=2)
    (found,) = findings(tiny(*ROBERTA, "run.name=other"))
    assert "tok pads with '</s>', id 2" in found.text, "no padding of its own"


def saved(run, step, model, sources=None):
    folder = run.step(step)
    folder.mkdir(parents=True)
    state = {"step": step, "model": model, "loader": {"position": 0} | ({"sources": sources} if sources else {})}
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    files = dict.fromkeys(("state.json", ".metadata"), CheckpointFile(bytes=0, sha256="0" * 64))
    manifest = CheckpointManifest(step=step, saved_at="", world_size=2, layout="", version="0", files=files)
    write_manifest(folder, manifest)


def test_checkpoint_to_resume_from_must_be_of_this_model_and_data(tiny, here):
    write_data(here / "data/train")
    config = tiny()
    run = run_folder(config)
    saved(run, 4, config.model.model_dump(mode="json"), [read_manifest("data/train").manifest_hash[:SHORT_HASH_DIGITS]])
    assert findings(config) == []
    (text,) = texts(tiny("model.rms_norm_eps=1e-6"))
    assert "model.rms_norm_eps: 1e-06: runs/tiny/checkpoints/step-00000004 was saved with 1e-05" in text
    saved(run, 8, config.model.model_dump(mode="json"), ["0" * 16])
    (text,) = texts(config)
    assert "is not the data that runs/tiny/checkpoints/step-00000008 was trained on" in text
    assert findings(config, resume="4") == []
    (run.step(8) / "MANIFEST.json").write_text("{}", encoding="utf-8")
    (found,) = findings(config)
    assert found.level == "warning", "the one before can be used"
    (found,) = findings(config, resume="8")
    assert (found.level, found.code) == ("error", ExitCode.CHECKPOINT)


def test_texts_whose_ids_the_model_has_no_rows_for(tiny, here):
    write_tokenizer(here / "tok", *(f"<{number}>" for number in range(600)))
    (text,) = texts(tiny("data.train=[{path: web.tar, format: webdataset}]", "tokenizer.path=tok"), as_job=False)[1:]
    assert "tokenizer.path: tok: has ids up to 601; model.vocab_size is 512" in text


def test_times_that_cannot_hold_a_step(tiny, here):
    write_data(here / "data/train")
    said = "\n".join(
        texts(
            tiny(
                "slurm.signal_before_limit_seconds=1",
                "monitor.hang_timeout_seconds=1",
                "training.global_batch_size=4096",
            )
        )
    )
    assert "slurm.signal_before_limit_seconds: 1: a step is planned to take" in said
    assert "monitor.hang_timeout_seconds: 1: a step is planned to take" in said


def test_how_many_walltimes_a_run_takes(tiny):
    config = tiny('slurm.time="4"', "slurm.signal_before_limit_seconds=60")
    plan = make_plan(config).chosen
    resolved = resolve(config, plan)
    steps = int(1000 / plan.step_seconds)  # 1,000 s of work in pieces of 180 s
    longer = resolved.model_copy(update={"training": resolved.training.model_copy(update={"steps": steps})})
    assert jobs_needed(longer, plan) == 6
    assert jobs_needed(resolved, plan) == 1
