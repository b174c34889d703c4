"""config.json of other people's models: what it says of the weights is taken, whatever else it says is no harm."""

import json
import os
import re

import pytest
import transformers

from megatrain.base.errors import ConfigError
from megatrain.huggingface.config_json import config_json, read_pretrained
from megatrain.model.families.transformers import resolve
from megatrain.model.family import FAMILIES
from megatrain.model.rope import Llama3Scaling
from tests.transformers_models import answer

SCALING = Llama3Scaling(factor=8.0, high_freq_factor=3.0, original_max_position_embeddings=16)


def test_the_configuration_there_and_back(model_section, tmp_path) -> None:
    section = model_section(rope_theta=5e5, tie_word_embeddings=True, rope_scaling=SCALING)
    (tmp_path / "config.json").write_text(json.dumps(config_json(section, max_position_embeddings=2048)))
    back, longest = read_pretrained(tmp_path)
    assert back == section.model_copy(update={"head_dim": section.head_size})
    assert longest == 2048


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "t5"}, "model_type: is 't5': megatrain has no family for it, and transformers"),
        ({"attention_bias": True}, "attention_bias: is True"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.rope_type: is 'dynamic'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters.factor: is missing"),
        ({"hidden_size": None}, "hidden_size: None: Input should be a valid integer"),
        ({"hidden_size": "wide"}, "hidden_size: 'wide': Input should be a valid integer"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: the weights are quantized (fp8)"),
        ({"quantization_config": ["x"]}, "quantization_config: the weights are quantized, and"),
        ({"rope_theta": 1.0}, "rope_theta: is 1.0 and 500.0: make them the same"),
        (
            {"rope_scaling": SCALING.model_dump() | {"rope_type": "llama3"}},
            "rope_scaling: differs from rope_parameters",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor: is 0.5"),
        ({"rope_parameters": 5}, "rope_parameters: 5: Input should be a valid dictionary"),
        ({"num_hidden_layers": 3_000_000}, "num_hidden_layers: 3000000: Input should be less than or equal to 100000"),
        ({"num_hidden_layers": 10**15}, "num_hidden_layers: 1000000000000000: Input should be less"),
        ({"num_hidden_layers": True}, "num_hidden_layers: True: Input should be a valid integer"),
        ({"num_key_value_heads": 4}, "num_key_value_heads: 4: does not divide model.num_attention_heads (6)"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps: -1.0: Input should be greater than 0"),
        ({"eos_token_id": "x"}, "eos_token_id.int: 'x': Input should be a valid integer"),
        ({"max_position_embeddings": 0}, "max_position_embeddings: 0: Input should be greater"),
    ],
)
def test_another_architecture_is_refused(model_section, tmp_path, change, said, monkeypatch) -> None:
    monkeypatch.setattr(resolve, "_answer", answer)
    content = config_json(model_section(), max_position_embeddings=64) | change
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        read_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {said}")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"model_type": "llama"}', "[" * 100_000, "version https://git-lfs.github.com/spec/v1"),
        *('{"model_type": "llama", "max_position_embeddings": Infinity}', '{"model_type": ' + "9" * 5000 + "}"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path, text) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config.json: "):
        read_pretrained(tmp_path)


@pytest.mark.parametrize("value", ["1e400", "NaN", "1" * 5000, "-1", "2.5", '"64"', "{}", "null"])
@pytest.mark.parametrize("field", ["max_position_embeddings", "vocab_size", "rms_norm_eps", "initializer_range"])
def test_no_value_of_a_number_ends_in_a_traceback(model_section, tmp_path, field, value) -> None:
    content = config_json(model_section(), max_position_embeddings=64) | {field: "HERE"}
    (tmp_path / "config.json").write_text(json.dumps(content).replace('"HERE"', value))
    if (field, value) == ("initializer_range", "2.5"):
        read_pretrained(tmp_path)
        return
    with pytest.raises(ConfigError, match=r"config.json: "):
        read_pretrained(tmp_path)


def test_null_is_false(model_section, tmp_path) -> None:
    content = config_json(model_section(), max_position_embeddings=64)
    content |= {"attention_bias": None, "mlp_bias": None, "quantization_config": None, "use_cache": True}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_pretrained(tmp_path)[1] == 64


def test_a_named_pipe_is_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="it is a named pipe"):
        read_pretrained(tmp_path)


# heads of other tasks, how to run it, and what older files are read with
NOT_OF_THE_MODEL = (
    r"classifier_.*|summary_.*|sparse_.*|use_cache|transformers_version|pretraining_tp|initializer_cutoff_factor"
    r"|deterministic_flash_attn|_sliding_window_pattern"
)
WIDER = {"attention_bias": True}, {"qk_norm": True}, {"sliding_window": 8}
SECTIONS = [(name, {}) for name in ("llama", "gpt", "bert", "modernbert", "gemma3")]
SECTIONS += [("llama", more) for more in WIDER] + [("bert", {"position_offset": 2})]


@pytest.mark.parametrize(("family", "more"), SECTIONS)
def test_what_transformers_would_write_of_the_model_is_said(family, more, tmp_path) -> None:
    """What config.json leaves out, transformers fills in from defaults of its own: of dropout, or of special tokens."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "vocab_size": 64}
    kind = FAMILIES.get(family).section
    inner = {"intermediate_size": 40} if "intermediate_size" in kind.model_fields else {}
    content = config_json(kind(**sizes, **inner, **more), max_position_embeddings=32)
    transformers.AutoConfig.for_model(**content).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert [name for name in saved.keys() - content.keys() if not re.fullmatch(NOT_OF_THE_MODEL, name)] == []
    assert {name: saved[name] for name in saved.keys() & content.keys()} == {
        name: content[name] for name in saved.keys() & content.keys()
    }
    assert not any(value for name, value in saved.items() if "dropout" in name and not name.startswith("summary"))
