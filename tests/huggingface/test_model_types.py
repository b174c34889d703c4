"""Models of transformers that are Llamas under another name: the same function, the same weights there and back."""

import json
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from megatrain.base.errors import ConfigError
from megatrain.huggingface.config_json import config_json, read_pretrained
from megatrain.huggingface.names import from_huggingface, to_huggingface
from megatrain.model.families.llama.module import Llama
from megatrain.model.families.transformers import resolve
from tests.transformers_models import answer

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 40, "vocab_size": 64, "max_position_embeddings": 32, "initializer_range": 0.3,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
THEIRS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None, "head_dim": 8}),
    "mistral-wide-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 32}),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 5}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "qwen2-tied": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "qwen2-wide-window": (Qwen2Config, Qwen2ForCausalLM, {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen2-window": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3-window": (
        Qwen3Config,
        Qwen3ForCausalLM,
        {
            "use_sliding_window": True,
            "sliding_window": 1,
            "layer_types": ["sliding_attention", "full_attention"],
            "head_dim": 8,
        },
    ),
    "llama-linear": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "qwen3-yarn": (
        Qwen3Config,
        Qwen3ForCausalLM,
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "rope_theta": 100.0,
            },
            "head_dim": 16,
        },
    ),
    "llama-yarn": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 500,
                "attention_factor": 1.3,
                "beta_fast": 20.0,
                "beta_slow": 2.0,
                "truncate": False,
            },
            "head_dim": 16,
        },
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8, "rms_norm_eps": 1e-3}),
    "qwen3-default-heads": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}),
}
EXPORTED = {"mistral": "llama", "mistral-wide-window": "llama"}
MINIMAL = {name: SIZES[name] for name in (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings",
)}  # fmt: skip


def their_model(name: str) -> PreTrainedModel:
    config, module, fields = THEIRS[name]
    torch.manual_seed(0)
    model = module(config(**SIZES, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norm weights of one, and biases of zero, would hide a swapped pair
                parameter.uniform_(0.5, 1.5)
    return model


def written(folder, content: dict[str, Any]):
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", THEIRS)
def test_the_same_logits_and_the_same_weights_there_and_back(name, tmp_path) -> None:
    theirs = their_model(name)
    theirs.config.save_pretrained(tmp_path)
    section, longest = read_pretrained(tmp_path)
    assert longest == 32
    state = {key: tensor for key, tensor in theirs.state_dict().items() if key in dict(theirs.named_parameters())}

    ours = Llama(section)
    ours.load_state_dict(from_huggingface(state, section), strict=not section.tie_word_embeddings)
    ids = torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = theirs(input_ids=ids).logits, ours(ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    back = to_huggingface(dict(ours.named_parameters()), section)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("name", THEIRS)
def test_an_exported_configuration_is_the_same_model_to_transformers(name, tmp_path) -> None:
    theirs = their_model(name)
    theirs.config.save_pretrained(tmp_path)
    section, longest = read_pretrained(tmp_path)

    content = json.loads((tmp_path / "config.json").read_text()) | config_json(section, max_position_embeddings=longest)
    assert content["model_type"] == EXPORTED.get(name, name.split("-")[0])
    config, module, _ = THEIRS[content["model_type"]]
    assert content["architectures"] == [module.__name__]
    again = module(config.from_dict(content)).eval()
    again.load_state_dict(theirs.state_dict())

    ids = torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, theirs(input_ids=ids).logits)
    assert read_pretrained(written(tmp_path, content))[0] == section.model_copy(update={"head_dim": section.head_size})


@pytest.mark.parametrize(
    ("name", "given"),
    [(name, {}) for name in ("llama", "mistral", "qwen2", "qwen3")]
    + [(name, {"num_key_value_heads": None}) for name in ("llama", "qwen2", "qwen3")],
)
def test_what_is_left_out_is_what_transformers_takes(name, given, tmp_path) -> None:
    sizes = {"num_attention_heads": 32, "hidden_size": 64} | given
    section, _ = read_pretrained(written(tmp_path, MINIMAL | sizes | {"model_type": name}))
    theirs = THEIRS[name][0](**MINIMAL | sizes)
    assert section.key_value_heads == theirs.num_key_value_heads
    assert section.head_size == (getattr(theirs, "head_dim", None) or 2)
    assert section.rms_norm_eps == theirs.rms_norm_eps
    assert section.rope_theta == theirs.rope_parameters["rope_theta"]
    assert section.tie_word_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llama", {"attention_bias": True}, "attention_bias: is True; megatrain has 'llama' with False only. Take"),
        ("qwen3", {"attention_bias": True}, "attention_bias: is True; megatrain has 'qwen3' with False only. Take"),
        ("qwen2", {"attention_bias": False}, "attention_bias: is False; megatrain has 'qwen2' with True only. Take"),
        ("mistral", {"mlp_bias": True}, "mlp_bias: is True"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act: is 'gelu'; megatrain has 'qwen2' with 'silu' only. Take"),
        ("mistral", {"sliding_window": "wide"}, "sliding_window: 'wide': Input should be a valid integer"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types: has 'sliding_attention', but there is no sliding_window",
        ),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            "layer_types: has 4 layers, num_hidden_layers is 2",
        ),
        ("qwen3", {"layer_types": ["linear_attention"]}, "layer_types: has 'linear_attention'; megatrain has"),
        ("qwen3", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope_scaling.rope_type: is 'dynamic'"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.original_max_position_embed"),
        (
            "qwen3",
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 8,
                    "mscale": 0.7,
                }
            },
            "rope_scaling.mscale: is 0.7; megatrain has attention_factor only",
        ),
        ("qwen3_moe", {}, "Qwen3MoeForCausalLM has experts (model.layers.0.mlp.experts"),
    ],
)
def test_what_the_architecture_has_not_is_refused(name, change, said, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(resolve, "_answer", answer)
    with pytest.raises(ConfigError) as caught:
        read_pretrained(written(tmp_path, SIZES | {"model_type": name} | change))
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {said}")


def test_a_window_by_default_is_kept(tmp_path) -> None:
    section, longest = read_pretrained(
        written(tmp_path, SIZES | {"model_type": "mistral"} | {"max_position_embeddings": 8192})
    )
    assert (section.windows, longest) == (((4095, 0), (4095, 0)), 8192)


def test_norms_and_biases_together_have_no_counterpart(model_section) -> None:
    section = model_section(attention_bias=True, qk_norm=True)
    with pytest.raises(ConfigError, match=r"model.qk_norm: True: together with model.attention_bias has no"):
        config_json(section, max_position_embeddings=32)
