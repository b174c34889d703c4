"""ModernBERT of transformers: the same function, the same weights there and back."""

import json
from typing import Any

import pytest
import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

from megatrain.base.errors import ConfigError
from megatrain.huggingface.config_json import config_json, read_pretrained
from megatrain.huggingface.names import from_huggingface, to_huggingface
from megatrain.model.build import build_model
from megatrain.model.families.modernbert.section import ModernBertSection
from tests.packing import check_packed

SIZES: dict[str, Any] = {
    "num_hidden_layers": 4, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 64,
    "max_position_embeddings": 32, "initializer_range": 0.3, "local_attention": 8, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None,
}  # fmt: skip
GLOBAL_FIRST = ("full_attention", "sliding_attention", "sliding_attention")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "other thetas": {
        "norm_eps": 1e-3,
        "rope_parameters": {"full_attention": {"rope_theta": 500.0}, "sliding_attention": {"rope_theta": 20.0}},
    },
    "other layers": {"layer_types": ["sliding_attention", "full_attention"] * 2, "local_attention": 2},
    "own position": {"local_attention": 0},
    "one theta": {"rope_scaling": {"rope_type": "default", "rope_theta": 300.0}},
    "one layer": {"num_hidden_layers": 1},
}


def their_model(name: str) -> ModernBertForMaskedLM:
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(ModernBertConfig(**SIZES | VARIANTS[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norm weights of one, and biases of zero, would hide a swapped pair
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.3)
    return model


def some_ids() -> torch.Tensor:
    return torch.randint(1, 64, (3, 32), generator=torch.Generator().manual_seed(0))


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
    content = json.loads((tmp_path / "config.json").read_text()) | config_json(section, max_position_embeddings=longest)
    again = ModernBertForMaskedLM(ModernBertConfig.from_dict(content)).eval()
    again.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=some_ids()).logits, theirs(input_ids=some_ids()).logits)
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_pretrained(tmp_path)[0] == section


def test_a_file_of_transformers_4(tmp_path) -> None:
    """As `answerdotai/ModernBERT-base` on the hub."""
    old = {"global_attn_every_n_layers": 2, "global_rope_theta": 9000.0, "local_rope_theta": 30.0}
    (tmp_path / "config.json").write_text(json.dumps(SIZES | old | {"model_type": "modernbert"}))
    section, _ = read_pretrained(tmp_path)
    assert section.windows == ((-1, -1), (4, 4), (-1, -1), (4, 4))
    assert (section.rope_theta, section.local_rope_theta) == (9000.0, 30.0)


def test_no_theta_of_local_layers_is_that_of_global_ones(tmp_path) -> None:
    """Of files of transformers 4, which wrote null; not there it is 10000."""
    for old, local in (({"local_rope_theta": None}, 9000.0), ({}, 10000.0)):
        content = SIZES | {"global_rope_theta": 9000.0, "model_type": "modernbert"} | old
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert read_pretrained(tmp_path)[0].local_rope_theta == local


def test_a_theta_inside_rope_scaling_is_that_of_all_layers(tmp_path) -> None:
    """As transformers reads it."""
    content = SIZES | {"model_type": "modernbert", "rope_scaling": {"rope_type": "default", "rope_theta": 300.0}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    section, _ = read_pretrained(tmp_path)
    assert (section.rope_theta, section.local_rope_theta) == (300.0, 300.0)


def test_an_export_says_where_global_layers_are_as_transformers_4_reads_it() -> None:
    for types, every in (
        (GLOBAL_FIRST, 3),
        (GLOBAL_FIRST[:1], 1),
        (GLOBAL_FIRST[::-1], None),
        (GLOBAL_FIRST[1:], None),
    ):
        section = ModernBertSection(
            num_hidden_layers=7, hidden_size=24, num_attention_heads=3, intermediate_size=40, vocab_size=64,
            layer_types=types,
        )  # fmt: skip
        assert config_json(section, max_position_embeddings=32).get("global_attn_every_n_layers") == every


def test_packed_documents_never_see_each_other(tmp_path) -> None:
    """Over local and global layers."""
    check_packed(their_model("plain"), tmp_path, some_ids()[:2, :12])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_activation": "relu"}, "hidden_activation: is 'relu'; megatrain has 'modernbert' with 'gelu' only"),
        ({"mlp_bias": True}, "mlp_bias: is True"),
        ({"decoder_bias": False}, "decoder_bias: is False"),
        ({"layer_types": ["linear_attention"] * 4}, "layer_types: has 'linear_attention'; megatrain has"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types: has 3 layers, num_hidden_layers is 4"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_scaling: megatrain has 'modernbert' without one only",
        ),
        ({"num_attention_heads": 5}, "num_attention_heads: 5: does not divide model.hidden_size (24)"),
    ],
)
def test_what_the_architecture_has_not_is_refused(change, said, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"model_type": "modernbert"} | change))
    with pytest.raises(ConfigError) as caught:
        read_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {said}")
