"""What is exported is what transformers computes with: the same logits, the same tokens."""

import json

import pytest
import torch

from megatrain.checkpoint.export import DTYPES, export
from megatrain.checkpoint.read import read_model
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.errors import CheckpointError, ConfigError
from tests.trained import make_trained_run


@pytest.fixture
def run(tmp_path):
    return make_trained_run(tmp_path)


def theirs(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [10**9, 10_000], ids=["one file", "many files"])
def test_transformers_gives_the_same_logits(tmp_path, tied, shard_bytes) -> None:
    run = make_trained_run(tmp_path, tied=tied)
    done = export(run.path, tmp_path / "out", dtype="float32", shard_bytes=shard_bytes)
    files = sorted(file.name for file in done.folder.glob("*.safetensors"))
    assert len(files) == done.files
    assert (done.files > 1) == (done.folder / "model.safetensors.index.json").is_file() == (shard_bytes < 10**9)
    ids = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = read_model(run.step(10))(ids), theirs(done.folder, dtype=torch.float32)(input_ids=ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_is_that_of_the_weights(tmp_path, run, dtype) -> None:
    done = export(run.path, tmp_path / "out", dtype=dtype)
    model = theirs(done.folder, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert sum(parameter.numel() for parameter in model.parameters()) == done.parameters


def test_the_tokenizer_comes_along(tmp_path, run) -> None:
    from transformers import AutoTokenizer

    folder = export(run.path, tmp_path / "out").folder
    mine, loaded = Tokenizer.load(tmp_path / "tokenizer"), AutoTokenizer.from_pretrained(folder)
    text = "once upon a time, naïve 12345"
    assert loaded(text, add_special_tokens=False)["input_ids"] == list(mine.encode(text))
    assert (loaded.eos_token_id, loaded.pad_token_id) == (mine.eos_id, mine.pad_id)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == mine.eos_id


def test_a_folder_that_holds_something_stays_as_it_is(tmp_path, run) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(ConfigError, match="is there already"):
        export(run.path, out)
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def test_of_a_damaged_checkpoint_nothing_is_left(tmp_path, run) -> None:
    next(run.step(10).glob("*.distcp")).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="none of 1 checkpoints verifies"):
        export(run.path, tmp_path / "out")
    assert not [file for file in tmp_path.iterdir() if "out" in file.name]
