"""Token classifiers of transformers: the same logits at every token, the same weights there and back."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

from megatrain.base.errors import ConfigError
from megatrain.huggingface.config_json import config_json, read_pretrained
from megatrain.huggingface.names import from_huggingface, to_huggingface
from megatrain.huggingface.reader import PretrainedReader
from megatrain.model.build import build_model
from tests.huggingface.test_classification import LABELS, NO_DROPOUT, SIZES, THEIRS, some_ids, weights_of

OF_TOKENS: dict[str, dict[str, Any]] = {
    name: THEIRS[name][2] | NO_DROPOUT | {"classifier_dropout": 0.0}
    for name in ("llama", "mistral", "qwen2", "qwen3", "gpt", "bert", "roberta", "modernbert")
}


def made(name: str, kind: Any = AutoModelForTokenClassification) -> Any:
    torch.manual_seed(0)
    return kind.from_config(AutoConfig.for_model(THEIRS[name][0], **SIZES | OF_TOKENS[name])).eval()


@pytest.mark.parametrize("name", OF_TOKENS)
def test_the_same_logits_and_the_same_weights_there_and_back(name, tmp_path) -> None:
    theirs = made(name)
    theirs.config.save_pretrained(tmp_path)
    section = read_pretrained(tmp_path)[0].model_copy(update={"num_labels": len(LABELS), "classifies": "token"})
    state = weights_of(theirs)
    ours = build_model(section)
    ours.load_state_dict(from_huggingface(state, section), strict=True)
    with torch.no_grad():
        expected, got = theirs(input_ids=some_ids()).logits, ours(some_ids())
    assert expected.shape == (3, 32, len(LABELS))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    back = to_huggingface(dict(ours.named_parameters()), section)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())

    content = config_json(section, max_position_embeddings=34, pad_token_id=1, labels=LABELS)
    (tmp_path / "config.json").write_text(json.dumps(content))
    again = AutoModelForTokenClassification.from_config(AutoConfig.from_pretrained(tmp_path))
    assert content["architectures"] == [type(again).__name__] == [type(theirs).__name__]
    again.load_state_dict(theirs.state_dict())

    # a classifier of sequences is a base of it
    save_file(weights_of(made(name, AutoModelForSequenceClassification)), tmp_path / "model.safetensors")
    names = {parameter for parameter, _ in ours.named_parameters()}
    assert names - PretrainedReader(tmp_path, section).names == {"head.weight", "head.bias"}


def test_what_transformers_has_not_is_not_exported(tmp_path) -> None:
    AutoConfig.for_model("gemma3_text", **SIZES | THEIRS["gemma3"][2]).save_pretrained(tmp_path)
    section = read_pretrained(tmp_path)[0].model_copy(update={"num_labels": 3, "classifies": "token"})
    with pytest.raises(ConfigError, match="gemma3: transformers has no classifier of its tokens"):
        config_json(section, max_position_embeddings=34)
