"""Classifiers of transformers: the same logits, the same weights there and back; what a base of one lacks is known."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from megatrain.base.errors import CheckpointError
from megatrain.huggingface.config_json import config_json, read_pretrained
from megatrain.huggingface.names import from_huggingface, to_huggingface
from megatrain.huggingface.reader import PretrainedReader
from megatrain.huggingface.weight_files import weight_files
from megatrain.model.architecture import ModelSection
from megatrain.model.build import build_model

LABELS = ("bad", "fair", "good")
PADDING = 1
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 64,
    "initializer_range": 0.3, "max_position_embeddings": 34, "num_labels": len(LABELS), "pad_token_id": PADDING,
    "bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None,
}  # fmt: skip
GEMMA = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 16}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
THEIRS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaForSequenceClassification", {}),
    "llama-tied": ("llama", "LlamaForSequenceClassification", {"tie_word_embeddings": True}),
    "mistral": ("mistral", "MistralForSequenceClassification", {"sliding_window": 5, "num_key_value_heads": 3}),
    "qwen2": ("qwen2", "Qwen2ForSequenceClassification", {"num_key_value_heads": 3}),
    "qwen3": ("qwen3", "Qwen3ForSequenceClassification", {"num_key_value_heads": 3}),
    "gpt": ("gpt2", "GPT2ForSequenceClassification", {"n_positions": 34, "n_inner": 40}),
    "gemma3": ("gemma3_text", "Gemma3TextForSequenceClassification", GEMMA | {"num_hidden_layers": 6}),
    "bert": ("bert", "BertForSequenceClassification", NO_DROPOUT),
    "roberta": ("roberta", "RobertaForSequenceClassification", NO_DROPOUT),
    "modernbert": ("modernbert", "ModernBertForSequenceClassification", {"classifier_pooling": "cls"}),
}


def their_model(name: str, kind: Any = AutoModelForSequenceClassification) -> PreTrainedModel:
    model_type, _, fields = THEIRS[name]
    torch.manual_seed(0)
    model = kind.from_config(AutoConfig.for_model(model_type, **SIZES | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norm weights of one, and biases of zero, would hide a swapped pair
                parameter.uniform_(0.1, 0.5)
    return model


def section_of(model: PreTrainedModel, folder) -> ModelSection:
    model.config.save_pretrained(folder)
    section, _ = read_pretrained(folder)
    return section.model_copy(update={"num_labels": len(LABELS)})


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def some_ids() -> torch.Tensor:
    return torch.randint(2, 64, (3, 32), generator=torch.Generator().manual_seed(0))  # none is padding


def labelled(section: ModelSection, logits_BSC: torch.Tensor) -> torch.Tensor:
    return logits_BSC[:, -1 if section.is_causal else 0]


@pytest.mark.parametrize("name", THEIRS)
def test_the_same_logits_and_the_same_weights_there_and_back(name, tmp_path) -> None:
    theirs = their_model(name)
    section = section_of(theirs, tmp_path)
    state = weights_of(theirs)

    ours = build_model(section)
    ours.load_state_dict(from_huggingface(state, section), strict=True)
    with torch.no_grad():
        expected, got = theirs(input_ids=some_ids()).logits, labelled(section, ours(some_ids()))
    assert expected.shape == (3, len(LABELS))
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    back = to_huggingface(dict(ours.named_parameters()), section)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("name", THEIRS)
def test_an_exported_configuration_is_the_same_classifier_to_transformers(name, tmp_path) -> None:
    theirs = their_model(name)
    section = section_of(theirs, tmp_path)
    content = config_json(section, max_position_embeddings=34, pad_token_id=PADDING, labels=LABELS)
    assert content["architectures"] == [THEIRS[name][1]]
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.id2label, config.label2id) == (dict(enumerate(LABELS)), {"bad": 0, "fair": 1, "good": 2})
    again = AutoModelForSequenceClassification.from_config(config).eval()
    assert type(again).__name__ == THEIRS[name][1]
    again.load_state_dict(theirs.state_dict())
    shorter = torch.cat([some_ids(), torch.full((3, 1), PADDING)], 1)  # transformers has to find the last token
    mask = (shorter != PADDING).long()
    with torch.no_grad():
        got = again(input_ids=shorter, attention_mask=mask).logits
        torch.testing.assert_close(got, theirs(input_ids=some_ids()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", THEIRS)
def test_a_base_gives_all_but_the_head_and_what_it_lacks(name, tmp_path) -> None:
    """Of a language model; of a classifier also what stands below its head."""
    kind = AutoModelForMaskedLM if "bert" in name else AutoModelForCausalLM
    section = section_of(their_model(name), tmp_path)
    names = {parameter for parameter, _ in build_model(section).named_parameters()}
    lacking = {
        "bert": {"pooler.dense.weight", "pooler.dense.bias"},
        "roberta": {"pooler.dense.weight", "pooler.dense.bias"},
    }
    head = {"head.weight"} | ({"head.bias"} if not section.is_causal else set())

    save_file(weights_of(their_model(name, kind)), tmp_path / "model.safetensors")
    assert names - PretrainedReader(tmp_path, section).names == head | lacking.get(name, set())
    save_file(weights_of(their_model(name)), tmp_path / "model.safetensors")
    assert names - PretrainedReader(tmp_path, section).names == head


def test_a_classifier_is_no_language_model_and_a_strange_weight_is_told(tmp_path) -> None:
    theirs = their_model("llama")
    section = section_of(theirs, tmp_path)
    save_file(weights_of(theirs), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight: is missing"):
        weight_files(tmp_path, section.model_copy(update={"num_labels": None}))
    save_file(weights_of(theirs) | {"model.extra.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.extra.weight: is not a weight of this architecture"):
        weight_files(tmp_path, section)


def test_token_types_of_a_bert_are_those_of_transformers(tmp_path) -> None:
    theirs = their_model("bert")
    section = section_of(theirs, tmp_path)
    ours = build_model(section)
    ours.load_state_dict(from_huggingface(weights_of(theirs), section), strict=True)
    types = (torch.arange(32) > 20).long().expand(3, -1)
    with torch.no_grad():
        expected = theirs(input_ids=some_ids(), token_type_ids=types).logits
        got = labelled(section, ours(some_ids(), token_types_BS=types))
        assert (expected - theirs(input_ids=some_ids()).logits).abs().max() > 0.01
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
