"""Ours and transformers' model, with the same weights, are the same function."""

import json
import subprocess
import sys

import pytest
import torch

from megatrain.base.errors import CheckpointError
from megatrain.huggingface.config_json import config_json
from megatrain.huggingface.names import from_huggingface, to_huggingface
from megatrain.model.rope import Llama3Scaling

SCALING = Llama3Scaling(factor=8.0, high_freq_factor=3.0, original_max_position_embeddings=16)


def theirs_with(state, section):
    from transformers import LlamaConfig, LlamaForCausalLM

    # by way of JSON, as config.json is read
    content = json.loads(json.dumps(config_json(section, max_position_embeddings=32)))
    model = LlamaForCausalLM(LlamaConfig.from_dict(content)).eval()
    loaded = model.load_state_dict(to_huggingface(state, section), strict=False)
    assert not loaded.unexpected_keys
    assert loaded.missing_keys == (["lm_head.weight"] if section.tie_word_embeddings else [])
    model.tie_weights()
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "fields", [{}, {"num_key_value_heads": None}, {"head_dim": None, "rope_theta": 10000.0}, {"rope_scaling": SCALING}]
)
def test_the_same_logits(model_section, make_model, tied, fields) -> None:
    section = model_section(tie_word_embeddings=tied, **fields)
    model = make_model(section)
    ids = torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        expected = theirs_with(dict(model.named_parameters()), section)(input_ids=ids).logits
        got = model(ids)

    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("tied", [False, True])
def test_there_and_back_is_the_identity(model_section, make_model, tied) -> None:
    section = model_section(tie_word_embeddings=tied)
    state = {name: p.detach() for name, p in make_model(section).named_parameters()}

    back = from_huggingface(to_huggingface(state, section), section)

    assert back.keys() == state.keys()
    assert all(back[name].data_ptr() == tensor.data_ptr() for name, tensor in state.items())


def test_the_names_are_all_of_theirs(model_section, make_model) -> None:
    section = model_section()
    state = dict(make_model(section).named_parameters())
    assert to_huggingface(state, section).keys() == theirs_with(state, section).state_dict().keys()


def test_a_tied_head_is_stored_once(model_section, make_model) -> None:
    section = model_section(tie_word_embeddings=True)
    with_head = make_model(section).state_dict()
    assert "head.weight" in with_head
    assert "lm_head.weight" not in to_huggingface(with_head, section)


def test_every_mismatch_is_named_at_once(model_section, make_model) -> None:
    section = model_section()
    state = to_huggingface(make_model(section).state_dict(), section)
    del state["model.norm.weight"]
    state["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(48)
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(24, 40)

    with pytest.raises(CheckpointError) as caught:
        from_huggingface(state, section)

    assert str(caught.value).splitlines() == [
        "model.norm.weight: is missing",
        "model.layers.1.self_attn.q_proj.bias: is not a weight of this architecture",
        "model.layers.0.mlp.up_proj.weight: has shape (24, 40), the model section says (40, 24)",
    ]


def test_the_rotary_buffer_of_old_files_is_skipped(model_section, make_model) -> None:
    section = model_section()
    state = to_huggingface(make_model(section).state_dict(), section)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    assert from_huggingface(state, section).keys() == make_model(section).state_dict().keys()


def test_transformers_is_not_imported() -> None:
    code = "import sys, megatrain.huggingface.names; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
