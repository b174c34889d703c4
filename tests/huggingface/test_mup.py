"""A model in muP as transformers has it: what the model multiplies by is in its weights there."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatrain.checkpoint.read import read_model
from megatrain.checkpoint.state import read_state
from megatrain.huggingface.config_json import config_json, read_pretrained
from megatrain.huggingface.export import export
from megatrain.huggingface.names import from_huggingface, to_huggingface
from megatrain.model.architecture import ModelSection, row_of
from megatrain.model.build import build_model
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.initialization import initial_weight, materialize
from megatrain.model.mup import MupSection
from tests.trained import make_trained_run, write_checkpoint

MUP = MupSection(base_width=12, base_head_size=16, embedding_multiplier=3.0, output_multiplier=5.0)
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "vocab_size": 64, "initializer_range": 0.3,
    "mup": MUP,
}  # fmt: skip
LLAMA: dict[str, Any] = SIZES | {"intermediate_size": 40, "num_key_value_heads": 1}
SECTIONS = {
    "llama": LlamaSection(**LLAMA),
    "llama, tied": LlamaSection(**LLAMA, tie_word_embeddings=True),
    "qwen2": LlamaSection(**LLAMA, attention_bias=True),
    "qwen3": LlamaSection(**LLAMA, qk_norm=True),
    "gpt2, tied": GPTSection(**SIZES, max_position_embeddings=32),
    "gpt2": GPTSection(**SIZES, max_position_embeddings=32, tie_word_embeddings=False),
}


def model_of(section: ModelSection) -> torch.nn.Module:
    with torch.device("meta"):
        model = build_model(section)
    materialize(model, lambda name, _: initial_weight(row_of(section, name), 0))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.mark.parametrize("name", SECTIONS)
@torch.no_grad()
def test_the_same_logits_in_transformers_and_in_a_model_without_mup(name: str, tmp_path) -> None:
    section = SECTIONS[name]
    ours = model_of(section)
    ids = torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))
    expected = ours(ids)
    assert expected.std() > 0.1
    weights = to_huggingface(dict(ours.named_parameters()), section)
    content = config_json(section, max_position_embeddings=32)

    config = AutoConfig.for_model(**content)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.load_state_dict(weights, strict=not section.ties_head)
    torch.testing.assert_close(theirs(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)

    (tmp_path / "config.json").write_text(json.dumps(content))
    plain, _ = read_pretrained(tmp_path)
    assert plain.mup is None
    again = build_model(plain)
    again.load_state_dict(from_huggingface(weights, plain), strict=False)
    torch.testing.assert_close(again(ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SECTIONS)
def test_weights_come_back_within_a_rounding(name: str) -> None:
    section = SECTIONS[name]
    ours = dict(model_of(section).named_parameters())
    back = from_huggingface(to_huggingface(ours, section), section)
    for key, tensor in back.items():
        torch.testing.assert_close(tensor, ours[key].detach(), rtol=1e-6, atol=0)


@torch.no_grad()
def test_a_run_is_exported_with_its_multipliers(tmp_path) -> None:
    run = make_trained_run(tmp_path, tied=True)
    model = read_state(run.step(10)).model.model_copy(update={"mup": MUP})
    write_checkpoint(run, 20, model)
    assert read_state(run.step(20)).model == model
    ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    expected = read_model(run.step(20))(ids)
    done = export(run.step(20), tmp_path / "out", dtype="float32")
    got = AutoModelForCausalLM.from_pretrained(done.folder, dtype=torch.float32).eval()(input_ids=ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected[..., : got.shape[-1]], rtol=1e-4, atol=1e-4)
