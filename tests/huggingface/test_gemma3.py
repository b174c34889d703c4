"""Gemma 3 of transformers: the same function, the same weights there and back."""

import json
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from megatrain.base.errors import ConfigError
from megatrain.huggingface.config_json import config_json, read_pretrained
from megatrain.huggingface.names import from_huggingface, to_huggingface
from megatrain.model.build import build_model
from megatrain.model.families.gemma3.section import Gemma3Section
from tests.packing import check_packed

SIZES: dict[str, Any] = {
    "num_hidden_layers": 7, "hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8,
    "intermediate_size": 40, "vocab_size": 64, "max_position_embeddings": 32, "initializer_range": 0.3,
    "sliding_window": 5, "query_pre_attn_scalar": 16, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "soft cap": {"final_logit_softcapping": 3.0, "rms_norm_eps": 1e-3, "num_key_value_heads": 3},
    "scaled": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        }
    },
    "other layers": {"num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
}


def their_model(name: str) -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES | VARIANTS[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # equal norm weights would hide a swapped pair
                parameter.uniform_(-0.5, 0.5)
    return model


def some_ids() -> torch.Tensor:
    return torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("width", [24, 640, 1152, 2560, 3840])
@torch.no_grad()
def test_the_embeddings_factor_is_rounded_as_theirs(width) -> None:
    """√width in the dtype of the embedding: bf16 has 4.90625 for √24. Published models were trained with it."""
    theirs = Gemma3TextScaledWordEmbedding(64, width, padding_idx=None, embed_scale=width**0.5)
    sizes = {"num_hidden_layers": 1, "hidden_size": width, "num_attention_heads": 1, "head_dim": 8}
    ours = build_model(Gemma3Section(**sizes, intermediate_size=8, vocab_size=64))
    seen: list[torch.Tensor] = []
    ours.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    for dtype in (torch.float32, torch.bfloat16):
        theirs.weight.data = torch.randn(64, width, generator=torch.Generator().manual_seed(0)).to(dtype)
        ours.to(dtype).embedding.weight.data = theirs.weight.data
        ours(some_ids())
        assert torch.equal(seen[-1], theirs(some_ids()))
    unrounded = theirs.weight.data[some_ids()] * width**0.5
    assert torch.equal(seen[-1], unrounded) == (torch.tensor(width**0.5).bfloat16().item() == width**0.5)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_exported_configuration_is_the_same_model_to_transformers(name, tmp_path) -> None:
    theirs = their_model(name)
    theirs.config.save_pretrained(tmp_path)
    section, longest = read_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | config_json(section, max_position_embeddings=longest)
    again = Gemma3ForCausalLM(Gemma3TextConfig.from_dict(content)).eval()
    again.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=some_ids()).logits, theirs(input_ids=some_ids()).logits)
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_pretrained(tmp_path)[0] == section


def test_packed_documents_never_see_each_other(tmp_path) -> None:
    check_packed(their_model("plain"), tmp_path, some_ids()[:2, :12])


def test_a_file_of_transformers_4(tmp_path) -> None:
    """As the published ones."""
    old = {
        "sliding_window_pattern": 2,
        "rope_theta": 9000.0,
        "rope_local_base_freq": 30.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    (tmp_path / "config.json").write_text(json.dumps(SIZES | old | {"model_type": "gemma3_text"}))
    section, _ = read_pretrained(tmp_path)
    assert section.windows[:3] == ((4, 0), (-1, 0), (4, 0))
    assert (section.rope_theta, section.local_rope_theta, section.rope_factor) == (9000.0, 30.0, 8.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation: is 'gelu'; megatrain has 'gemma3_text' with"),
        ({"attention_bias": True}, "attention_bias: is True"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: is 50.0; megatrain has 'gemma3_text' with None"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention: is True"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types: has 3 layers, num_hidden_layers is 7"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}},
            "rope_scaling: megatrain has 'gemma3_text' with 'linear', of global layers, only",
        ),
        ({"num_attention_heads": 5}, "num_attention_heads: 5: does not divide model.hidden_size (24)"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads: 3: does not divide"),
    ],
)
def test_what_the_architecture_has_not_is_refused(change, said, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"model_type": "gemma3_text"} | change))
    with pytest.raises(ConfigError) as caught:
        read_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {said}")
