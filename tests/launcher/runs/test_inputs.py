"""A run holds what it needs: whatever becomes of the places that it took it from."""

import json
import os
import shutil
from functools import partial

import pytest

from launcher.runs.inputs import keep_inputs, keep_inputs_late
from megatrain.base.errors import DataError
from megatrain.config.file import dump_config, parse_config
from megatrain.data.text.tokenizer_files import read_tokenizer, tokenizer_file
from megatrain.huggingface.base_model import fingerprints, is_same_base
from megatrain.huggingface.config_json import config_json
from megatrain.run.directory import RunDir
from megatrain.run.inputs import load_run, own_base, own_tokenizer
from tests.decided import DECIDED
from tests.launcher.conftest import TINY, write_data, write_tokenizer

FINETUNE = """
run: {name: tuned}
finetune: {base: llama, train: [train.jsonl], sequence_length: 32}
model: {num_hidden_layers: 1, hidden_size: 8, num_attention_heads: 2, intermediate_size: 8, vocab_size: 8}
tokenizer: {path: llama}
training: {steps: 5, global_batch_size: 4}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def llama(here):
    """What lies beside the weights of a pretrained model; the weights are not looked into here."""
    write_tokenizer(here / "llama", "<s>", eos_token="<s>")
    (here / "llama/chat_template.jinja").write_text("{{ messages }}")
    (here / "llama/special_tokens_map.json").write_text("{}")
    content = config_json(parse_config(TINY).model, max_position_embeddings=64)
    (here / "llama/config.json").write_text(json.dumps(content))
    (here / "llama/generation_config.json").write_text('{"temperature": 0.6}')
    (here / "llama/README.md").write_text("not a part of it")
    (here / "llama/model.safetensors").write_bytes(bytes(3 << 20))
    return here / "llama"


def finetune(base: str = "llama"):
    return parse_config(FINETUNE, overrides=[f"finetune.base={base}", f"tokenizer.path={base}", *DECIDED])


@pytest.fixture
def tuned(llama):
    run = RunDir("runs/tuned")
    keep_inputs(run, finetune())
    run.config.write_text(dump_config(finetune()), encoding="utf-8")
    return run


def test_what_is_kept_of_a_pretrained_base(llama, tuned):
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
    assert {file.name for file in tuned.tokenizer.iterdir()} == names
    assert own_base(tuned).keys() == {"config.json", "generation_config.json"}
    for name in names:
        assert (tuned.tokenizer / name).read_bytes() == (llama / name).read_bytes()
    shutil.rmtree(llama)
    assert load_run(tuned).tokenizer.path == "runs/tuned/tokenizer"
    assert own_base(tuned)["generation_config.json"] == b'{"temperature": 0.6}'


def test_run_resumes_from_its_own_copies_in_any_place(tuned, here, monkeypatch):
    (here / "runs").rename(here / "archive")
    monkeypatch.chdir("/")
    moved = RunDir(here / "archive/tuned")
    assert load_run(moved, verify=True).tokenizer.path == str(moved.tokenizer)
    assert own_base(moved)


def test_a_fine_tuning_of_a_fine_tuning_keeps_what_the_first_base_said(tuned, here):
    second = RunDir("runs/second")
    keep_inputs(
        second, finetune("runs/tuned/tokenizer").model_copy(update={"finetune": finetune("runs/tuned").finetune})
    )
    assert own_base(second) == own_base(tuned)


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "base/config.json"])
def test_copy_with_a_checksum_mismatch_is_refused(tuned, name):
    (tuned.path / name).write_text("{}")
    read = own_base if name.startswith("base") else partial(own_tokenizer, verify=True)
    with pytest.raises(DataError, match=f"{name}: checksum mismatch: it is not what the run began with"):
        read(tuned)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 99_999, "nested too deeply"),
        ("", "is not JSON: it is empty"),
        (
            '{"tokenizer": {"path": "x", "files": {"../../etc/passwd": "' + "0" * 64 + '"}}}',
            "String should match pattern",
        ),
        ('{"tokenizer": {"path": "x", "files": {"a": "0"}}}', "String should match pattern"),
        ('{"tokenizer": 5}', "tokenizer: 5: Input should be"),
        ('{"format": 2}', "format: 2: Input should be 1"),
    ],
)
def test_a_record_that_was_written_by_someone_else(tuned, text, said):
    tuned.inputs.write_text(text)
    with pytest.raises(DataError, match=f"inputs.json: .*{said}"):
        own_tokenizer(tuned, verify=True)


def test_an_older_run_reads_the_path_and_says_so(tuned, here):
    shutil.rmtree(tuned.tokenizer)
    tuned.inputs.unlink()
    said = []
    assert load_run(tuned, warn=said.append).tokenizer.path == "llama"
    assert "runs/tuned: has no copy of its tokenizer; llama is used as it is now" in said[0]
    shutil.copytree("llama", tuned.tokenizer)  # by hand
    assert load_run(tuned, verify=True).tokenizer.path == "runs/tuned/tokenizer"
    shutil.rmtree("llama")
    keep_inputs_late(tuned, finetune())
    assert own_tokenizer(tuned, verify=True)


def test_the_tokenizer_of_prepared_data_where_none_is_named(here):
    write_data(here / "data/train", tokenizer_sha256=write_tokenizer(here / "tok", "<s>"))
    shutil.copy("tok/tokenizer.json", "data/train")
    run = RunDir("runs/tiny")
    config = parse_config(TINY, overrides=DECIDED)
    keep_inputs(run, config)
    run.config.write_text(dump_config(config), encoding="utf-8")
    assert load_run(run).tokenizer.path == "runs/tiny/tokenizer"
    assert json.loads((run.tokenizer / "tokenizer_config.json").read_text())["eos_token"] == "a", "id 0"
    (here / "data/train/tokenizer.json").write_text("{}")  # not what the manifest says
    keep_inputs(run, config)
    assert not run.tokenizer.exists()


def test_weights_are_told_apart_quickly(llama, tuned, here):
    llama.rename(here / "moved")
    assert is_same_base(tuned, "moved") is True
    weights = here / "moved/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] = 1
    weights.write_bytes(content)
    assert is_same_base(tuned, "moved") is False
    with open(here / "moved/model.safetensors", "wb") as file:
        file.truncate(1 << 40)  # a hole of 1 TiB
    assert len(fingerprints("moved")) == 1


def test_of_a_base_run_any_checkpoint_that_it_had_will_do(here):
    base = RunDir("runs/base")
    for step in (1, 2):
        base.step(step).mkdir(parents=True)
        (base.step(step) / "MANIFEST.json").write_text(str(step))
    tuned = RunDir("runs/tuned")
    write_tokenizer(here / "tok")
    config = finetune("runs/base")
    keep_inputs(tuned, config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"path": "tok"})}))
    assert not own_base(tuned)
    shutil.move(base.path, here / "elsewhere")
    shutil.rmtree(here / "elsewhere/checkpoints/step-00000001")  # it was trained on
    assert is_same_base(tuned, "elsewhere") is True
    assert is_same_base(tuned, "elsewhere/checkpoints/step-00000002") is True
    (here / "elsewhere/checkpoints/step-00000002/MANIFEST.json").write_text("other")
    assert is_same_base(tuned, "elsewhere") is False


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json"])
def test_a_folder_with_a_foreign_tokenizer_only(here, name):
    assert tokenizer_file(".").name == "tokenizer.json"
    (here / name).touch()
    assert tokenizer_file(".").name == name
    with pytest.raises(DataError, match=f"{name}: is not a tokenizer: it is empty"):
        read_tokenizer(".")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("text", ["version https://git-lfs", "[]", "[" * 99_999])
def test_what_lies_beside_a_tokenizer_is_read_without_trust(here, name, text):
    write_tokenizer(here / "tok")
    (here / "tok" / name).write_text(text)
    with pytest.raises(DataError, match=rf"tok/{name}: (is not JSON|must be a JSON object|is JSON nested)"):
        read_tokenizer("tok")


def test_a_named_pipe_is_not_waited_for(here):
    os.mkfifo(here / "tokenizer.json")
    with pytest.raises(DataError, match="it is a named pipe"):
        read_tokenizer(".")
