"""GPT-2 of transformers: the same function, the same weights there and back."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from megatrain.base.errors import ConfigError
from megatrain.huggingface.config_json import config_json, read_pretrained
from megatrain.huggingface.names import from_huggingface, to_huggingface
from megatrain.huggingface.weight_files import weight_files
from megatrain.model.build import build_model

SIZES: dict[str, Any] = {
    "n_layer": 2, "n_embd": 24, "n_head": 3, "vocab_size": 64, "n_positions": 32, "initializer_range": 0.3,
    "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False, "n_inner": 40, "layer_norm_epsilon": 1e-3},
    "one head": {"n_head": 1, "n_layer": 1},
}


def their_model(name: str) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SIZES | VARIANTS[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norm weights of one, and biases of zero, would hide a swapped pair
                parameter.uniform_(0.5, 1.5)
    return model


def weights_of(model: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_logits_and_the_same_weights_there_and_back(name, tmp_path) -> None:
    theirs = their_model(name)
    theirs.config.save_pretrained(tmp_path)
    section, longest = read_pretrained(tmp_path)
    assert longest == 32
    state = weights_of(theirs)

    ours = build_model(section)
    ours.load_state_dict(from_huggingface(state, section), strict=not section.tie_word_embeddings)
    ids = torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = theirs(input_ids=ids).logits, ours(ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    back = to_huggingface(dict(ours.named_parameters()), section)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_an_exported_configuration_is_the_same_model_to_transformers(name, tmp_path) -> None:
    theirs = their_model(name)
    theirs.config.save_pretrained(tmp_path)
    section, _ = read_pretrained(tmp_path)

    # positions are learned: the shorter sequences of a fine-tuning do not change how many there are
    content = json.loads((tmp_path / "config.json").read_text()) | config_json(section, max_position_embeddings=8)
    again = GPT2LMHeadModel(GPT2Config.from_dict(content)).eval()
    again.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, theirs(input_ids=ids).logits)
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_pretrained(tmp_path)[0] == section


def test_files_without_the_prefix_and_with_masks_are_read(tmp_path) -> None:
    """As `openai-community/gpt2` on the hub."""
    theirs = their_model("plain")
    theirs.config.save_pretrained(tmp_path)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in weights_of(theirs).items()}
    tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 32, 32).tril() for layer in (0, 1)}
    save_file(tensors, tmp_path / "model.safetensors")
    section, _ = read_pretrained(tmp_path)
    assert set(weight_files(tmp_path, section)) == {name for name in tensors if not name.endswith(".attn.bias")}
    assert from_huggingface(tensors, section).keys() == from_huggingface(weights_of(theirs), section).keys()


def test_nothing_given_is_the_smallest_gpt2(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    section, longest = read_pretrained(tmp_path)
    assert longest == 1024
    assert section.parameters == 124_439_808


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation_function": "relu"}, "activation_function: is 'relu'; megatrain has 'gpt2' with 'gelu_new' only"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: is True; megatrain has"),
        ({"scale_attn_weights": False}, "scale_attn_weights: is False"),
        ({"add_cross_attention": True}, "add_cross_attention: is True"),
        ({"n_head": 5}, "num_attention_heads: 5: does not divide model.hidden_size (24)"),
        ({"n_layer": "two"}, "n_layer: 'two': Input should be a valid integer"),
    ],
)
def test_what_the_architecture_has_not_is_refused(change, said, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"model_type": "gpt2"} | change))
    with pytest.raises(ConfigError) as caught:
        read_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {said}")
