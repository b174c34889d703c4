"""Folders of a bare model, as of BertModel: read, and the head that they lack is drawn from the seed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatrain.base.errors import CheckpointError
from megatrain.huggingface.config_json import read_pretrained
from megatrain.huggingface.names import shapes, wholes
from megatrain.huggingface.reader import PretrainedReader
from megatrain.huggingface.weight_files import weight_files

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 64,
    "max_position_embeddings": 32, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
BERT_HEAD = ["dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias"]
BARE: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "BertModel": (
        "BertConfig",
        {},
        [*(f"cls.predictions.transform.{leaf}" for leaf in BERT_HEAD), "cls.predictions.bias"],
    ),
    "RobertaModel": (
        "RobertaConfig",
        {},
        [f"lm_head.{leaf.replace('LayerNorm', 'layer_norm')}" for leaf in BERT_HEAD] + ["lm_head.bias"],
    ),
    "ModernBertModel": (
        "ModernBertConfig",
        {"cls_token_id": None, "sep_token_id": None},
        ["head.dense.weight", "head.norm.weight", "decoder.bias"],
    ),
    "LlamaModel": ("LlamaConfig", {}, ["lm_head.weight"]),
    "LlamaModel, tied": ("LlamaConfig", {"tie_word_embeddings": True}, []),
    "Qwen3Model": (
        "Qwen3Config",
        {"tie_word_embeddings": False, "num_key_value_heads": 3, "head_dim": 8},
        ["lm_head.weight"],
    ),
    "GPT2Model": ("GPT2Config", {"tie_word_embeddings": False}, ["lm_head.weight"]),
    "Gemma3TextModel": ("Gemma3TextConfig", {"head_dim": 8, "num_key_value_heads": 1}, []),
}


def save(name: str, folder: Path) -> dict[str, torch.Tensor]:
    config, fields, _ = BARE[name]
    torch.manual_seed(0)
    model = getattr(transformers, name.split(",")[0])(getattr(transformers, config)(**SIZES | fields))
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def read(folder: Path) -> dict[str, torch.Tensor]:
    """By our names, what the folder has."""
    section, _ = read_pretrained(folder)
    reader = PretrainedReader(folder, section)
    found = {name: torch.empty(shape) for name, shape in shapes(section).items() if name in reader.names}
    items = [
        SimpleNamespace(storage_index=MetadataIndex(f"weight.{name}"), storage_offsets=[0] * tensor.ndim,
                        lengths=list(tensor.shape), name=name)
        for name, tensor in found.items()
    ]  # fmt: skip
    planner = SimpleNamespace(resolve_tensor=lambda item: found[item.name], commit_tensor=lambda item, tensor: None)
    reader.read_data(SimpleNamespace(items=items), planner).wait()
    return found


@pytest.mark.parametrize("name", BARE)
def test_all_but_the_head_is_read(name, tmp_path) -> None:
    """What becomes of the head: tests/distributed/test_pretrained.py."""
    theirs = save(name, tmp_path)
    section, _ = read_pretrained(tmp_path)
    found, left = read(tmp_path), []
    for full, whole in wholes(section).items():
        if whole.rows[0].name not in found:
            left.append(full)
            continue
        stored = theirs[next(bare for bare in theirs if full.endswith(bare))]
        for number, row in enumerate(whole.rows):
            tensor = stored.t() if row.theirs.transposed else stored
            assert torch.equal(found[row.name], tensor.chunk(len(whole.rows))[number])
    assert sorted(left) == sorted(BARE[name][2])


def test_a_head_of_which_a_part_is_missing_is_refused(tmp_path) -> None:
    theirs = save("BertModel", tmp_path)
    save_file(theirs | {"cls.predictions.bias": torch.zeros(64)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cls.predictions.transform.dense.bias: is missing"):
        weight_files(tmp_path, read_pretrained(tmp_path)[0])


def test_a_whole_model_without_its_head_is_refused(tmp_path) -> None:
    """Its names have the prefix that a bare model's have not: the head was there once."""
    theirs = save("LlamaModel", tmp_path)
    save_file({f"model.{name}": tensor for name, tensor in theirs.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight: is missing"):
        weight_files(tmp_path, read_pretrained(tmp_path)[0])
