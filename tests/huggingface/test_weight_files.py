"""Headers of safetensors files that somebody else wrote: what does not add up is refused, by name."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatrain.base.errors import CheckpointError
from megatrain.huggingface.names import to_huggingface
from megatrain.huggingface.weight_files import weight_files

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"


def write_header(file, header, data: bytes = b"") -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def state(model_section, make_model):
    section = model_section()
    named = {name: p.detach().contiguous() for name, p in make_model(section).named_parameters()}
    return to_huggingface(named, section)


@pytest.fixture
def folder(state, tmp_path):
    save_file(state, tmp_path / ONE, metadata={"format": "pt"})
    return tmp_path


@pytest.fixture
def sharded(state, tmp_path):
    """Two files and their index, as transformers writes them."""
    names = sorted(state)
    parts = {f"model-{n:05d}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, tmp_path / file)
    places = {name: file for file, held in parts.items() for name in held}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return tmp_path


def test_where_each_tensor_lies(folder, model_section) -> None:
    files = weight_files(folder, model_section())
    assert set(files.values()) == {folder / ONE}
    assert "model.layers.1.mlp.down_proj.weight" in files


def test_several_files_with_and_without_their_index(sharded, model_section) -> None:
    with_index = weight_files(sharded, model_section())
    assert len(set(with_index.values())) == 2
    (sharded / INDEX).unlink()
    assert weight_files(sharded, model_section()) == with_index


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_floating_point_numbers_are_read(folder, state, model_section, dtype) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, folder / ONE)
    assert set(weight_files(folder, model_section()).values()) == {folder / ONE}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.int32, torch.bool])
def test_whatever_needs_a_scale_is_refused(folder, state, model_section, dtype) -> None:
    state["model.norm.weight"] = state["model.norm.weight"].to(dtype)
    save_file(state, folder / ONE)
    with pytest.raises(
        CheckpointError, match=r"model.norm.weight: is stored as \w+; weights are read as F64, F32, F16, BF16"
    ):
        weight_files(folder, model_section())


@pytest.mark.parametrize("name", ["q_proj.bias", "q_proj.weight_scale_inv", "q_norm.weight", "rotary_emb.inv_freqs"])
def test_a_tensor_that_the_architecture_lacks_is_refused(folder, state, model_section, name) -> None:
    save_file(state | {f"model.layers.1.self_attn.{name}": torch.zeros(3)}, folder / ONE)
    with pytest.raises(CheckpointError, match=f"model.layers.1.self_attn.{name}: is not a weight of this architecture"):
        weight_files(folder, model_section())


def test_what_follows_from_the_rest_is_skipped(folder, state, model_section) -> None:
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        "model.rotary_emb.inv_freq": torch.zeros(4),
    }
    save_file(state | extra, folder / ONE)
    assert not weight_files(folder, model_section()).keys() & extra.keys()
    tied = weight_files(folder, model_section(tie_word_embeddings=True))  # with a copy as its head
    assert "lm_head.weight" not in tied


def test_a_file_that_is_cut_short(folder, model_section) -> None:
    file = folder / ONE
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model.safetensors: is damaged or cut short.*bytes, its header says"):
        weight_files(folder, model_section())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a safetensors file: it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a git-lfs pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "it is an HTML page"),
        (b"PK\x03\x04 a pickle of torch.save", "it is a zip archive"),
        (b"not one", "is damaged, or not a safetensors file"),
        (b"\xff" * 20, "is damaged, or not a safetensors file: its first 8 bytes"),
        ((2).to_bytes(8, "little") + b"[]", "is damaged, or not a safetensors file: its header"),
        ((9).to_bytes(8, "little") + b"{" * 9, "is damaged, or not a safetensors file: its header: is not JSON"),
        ((50_000).to_bytes(8, "little") + b"[" * 50_000, "nested too deeply"),
    ],
)
def test_what_is_no_such_file(folder, model_section, content, said) -> None:
    (folder / ONE).write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        weight_files(folder, model_section())


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4 * 10**30]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": 5, "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"shape": [2], "data_offsets": [0, 8]},
        [],
        None,
    ],
    ids=str,
)
def test_an_entry_that_does_not_add_up(folder, model_section, entry) -> None:
    write_header(folder / ONE, {"model.norm.weight": entry}, b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"model.safetensors: is damaged"):
        weight_files(folder, model_section())


def test_tensors_that_share_bytes(folder, model_section) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write_header(folder / ONE, {"a": entry, "b": entry}, b"\0" * 8)
    with pytest.raises(CheckpointError, match="is at bytes 0 to 8, after 8"):
        weight_files(folder, model_section())


def test_more_layers_than_there_are_tensors(folder, model_section) -> None:
    with pytest.raises(CheckpointError, match=r"weights are 21 tensors; the model section says 450,003"):
        weight_files(folder, model_section(num_hidden_layers=50_000))


class TestSeveralFiles:
    def test_a_tensor_in_two_of_them(self, folder, sharded, model_section) -> None:
        (sharded / ONE).unlink()
        (sharded / INDEX).unlink()
        first, second = (sharded / f"model-{n:05d}-of-00002.safetensors" for n in (1, 2))
        save_file(load_file(first) | load_file(second), second)
        with pytest.raises(CheckpointError, match=r"is in model-00001-of-00002.safetensors and in model-00002"):
            weight_files(sharded, model_section())

    def test_files_of_two_saves(self, folder, sharded, model_section) -> None:
        with pytest.raises(CheckpointError, match="not clear which weights are meant"):
            weight_files(sharded, model_section())
        (sharded / INDEX).unlink()
        with pytest.raises(CheckpointError, match="files of several saves"):
            weight_files(sharded, model_section())
        (sharded / ONE).unlink()
        (sharded / "model-00002-of-00002.safetensors").rename(sharded / "model-00002-of-00003.safetensors")
        with pytest.raises(CheckpointError, match="files of several saves"):
            weight_files(sharded, model_section())
        (sharded / "model-00001-of-00002.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"model-00001-of-00003.safetensors: is missing"):
            weight_files(sharded, model_section())

    def test_a_shard_of_another_save(self, sharded, model_section) -> None:
        first, second = (sharded / f"model-{n:05d}-of-00002.safetensors" for n in (1, 2))
        first.write_bytes(second.read_bytes())
        with pytest.raises(
            CheckpointError, match=r"00001-of-00002.safetensors: holds .*, which model.safetensors.index"
        ):
            weight_files(sharded, model_section())

    @pytest.mark.parametrize(
        ("places", "said"),
        [
            ({"a": "../x.safetensors"}, "must be a safetensors file beside it"),
            ({"a": "/etc/passwd"}, "must be a safetensors file beside it"),
            ({"a": "x.safetensors\n"}, "must be a safetensors file beside it"),
            ({"a": "x\0.safetensors"}, "must be a safetensors file beside it"),
            ({"a": 5}, "weight_map.a: 5: Input should be a valid string"),
            ([], "weight_map: list: Input should be a valid dictionary"),
            ({}, "weight_map: names no tensor"),
            ({"a": "gone.safetensors"}, "gone.safetensors: cannot be read: No such file"),
        ],
    )
    def test_an_index_that_cannot_be_followed(self, sharded, model_section, places, said) -> None:
        (sharded / INDEX).write_text(json.dumps({"weight_map": places}))
        with pytest.raises(CheckpointError, match=said):
            weight_files(sharded, model_section())

    def test_an_index_that_promises_more(self, sharded, model_section) -> None:
        content = json.loads((sharded / INDEX).read_text())
        content["weight_map"]["more"] = "model-00001-of-00002.safetensors"
        (sharded / INDEX).write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"00001-of-00002.safetensors: has no tensor more"):
            weight_files(sharded, model_section())


def test_only_regular_files(folder, model_section) -> None:
    (folder / ONE).unlink()
    os.mkfifo(folder / ONE)
    with pytest.raises(CheckpointError, match="it is a named pipe"):
        weight_files(folder, model_section())


def test_pickles_are_not_read(tmp_path, model_section) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"has no \*.safetensors. Weights in pickles"):
        weight_files(tmp_path, model_section())
