"""Gemma 2 of transformers: the same function, the same weights there and back. Its attention is eager there."""

import json
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from megatrain.base.errors import ConfigError
from megatrain.huggingface.config_json import config_json, read_pretrained
from megatrain.huggingface.names import from_huggingface, to_huggingface
from megatrain.model.build import build_model
from megatrain.model.families.gemma3.section import Gemma3Section
from megatrain.model.families.llama.section import LlamaSection
from tests.huggingface.test_gemma3 import SIZES, some_ids
from tests.packing import check_packed

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
    "no caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None, "num_key_value_heads": 3},
    "other layers": {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
}


def their_model(name: str) -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES | {"num_hidden_layers": 4} | VARIANTS[name], attn_implementation="eager")
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # equal norm weights would hide a swapped pair
                parameter.uniform_(-0.5, 0.5)
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_logits_and_the_same_weights_there_and_back(name, tmp_path) -> None:
    theirs = their_model(name)
    theirs.config.save_pretrained(tmp_path)
    section, longest = read_pretrained(tmp_path)
    assert longest == 32
    state = {key: parameter.detach() for key, parameter in theirs.named_parameters()}

    ours = build_model(section)
    ours.load_state_dict(from_huggingface(state, section), strict=False)
    with torch.no_grad():
        expected, got = theirs(input_ids=some_ids()).logits, ours(some_ids())
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    back = to_huggingface(dict(ours.named_parameters()), section)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_an_exported_configuration_is_the_same_model_to_transformers(name, tmp_path) -> None:
    theirs = their_model(name)
    theirs.config.save_pretrained(tmp_path)
    section, longest = read_pretrained(tmp_path)
    content = config_json(section, max_position_embeddings=longest)
    assert content["architectures"] == ["Gemma2ForCausalLM"]
    again = Gemma2ForCausalLM(Gemma2Config.from_dict(content, attn_implementation="eager")).eval()
    again.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=some_ids()).logits, theirs(input_ids=some_ids()).logits)
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_pretrained(tmp_path)[0] == section.model_copy(
        update={"layer_types": tuple(content["layer_types"])}  # all of them, where a pattern was read
    )


def test_packed_documents_never_see_each_other(tmp_path) -> None:
    check_packed(their_model("plain"), tmp_path, some_ids()[:2, :12])


def test_what_a_file_leaves_out_is_what_transformers_takes(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    section, longest = read_pretrained(tmp_path)
    assert isinstance(section, Gemma3Section)
    assert (section.attn_logit_softcapping, section.final_logit_softcapping, longest) == (50.0, 30.0, 8192)
    assert section.windows[:3] == ((4095, 0), (-1, 0), (4095, 0))
    assert (section.rope_theta, section.local_rope_theta, section.qk_norm) == (1e4, 1e4, False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation: is 'gelu'; megatrain has 'gemma2' with"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types: has 2 layers, num_hidden_layers is 7"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling: megatrain has 'gemma2' without"),
        ({"attn_logit_softcapping": -1.0}, "attn_logit_softcapping: "),
    ],
)
def test_what_the_architecture_has_not_is_refused(change, said, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"model_type": "gemma2"} | change))
    with pytest.raises(ConfigError) as caught:
        read_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {said}")


def test_what_transformers_has_not_is_not_exported() -> None:
    sizes: dict[str, Any] = {
        "num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 64
    }  # fmt: skip
    gemma = Gemma3Section(**sizes, head_dim=8)
    for model, said in (
        (gemma.model_copy(update={"attn_logit_softcapping": 50.0}), "transformers has Gemma 3 without"),
        (gemma.model_copy(update={"qk_norm": False}), "turns all layers by rope_theta"),
        (LlamaSection(**sizes, attn_logit_softcapping=50.0), "model.attn_logit_softcapping: 50.0: a Llama with"),
        (LlamaSection(**sizes, final_logit_softcapping=30.0), "model.final_logit_softcapping: 30.0: a Llama with"),
    ):
        with pytest.raises(ConfigError, match=said):
            config_json(model, max_position_embeddings=32)
