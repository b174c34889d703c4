"""Question answering models of transformers: the same logits, the same weights there and back under their names."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForQuestionAnswering

from megatrain.huggingface.config_json import config_json, read_pretrained
from megatrain.huggingface.names import from_huggingface, to_huggingface
from megatrain.huggingface.reader import PretrainedReader
from megatrain.model.build import build_model
from megatrain.model.family import FAMILIES
from tests.huggingface.test_classification import SIZES, THEIRS, some_ids, weights_of
from tests.huggingface.test_token_classification import OF_TOKENS


@pytest.mark.parametrize("name", OF_TOKENS)
def test_the_same_logits_and_the_same_weights_there_and_back(name, tmp_path) -> None:
    torch.manual_seed(0)
    sizes = SIZES | OF_TOKENS[name] | {"num_labels": 2}
    theirs = AutoModelForQuestionAnswering.from_config(AutoConfig.for_model(THEIRS[name][0], **sizes)).eval()
    theirs.config.save_pretrained(tmp_path)
    section = read_pretrained(tmp_path)[0].model_copy(update={"num_labels": 2, "classifies": "span"})
    state = weights_of(theirs)
    ours = build_model(section)
    ours.load_state_dict(from_huggingface(state, section), strict=True)
    with torch.no_grad():
        expected, got = theirs(input_ids=some_ids()), ours(some_ids())
    torch.testing.assert_close(got, torch.stack((expected.start_logits, expected.end_logits), -1), rtol=1e-4, atol=1e-4)

    exported = FAMILIES.get(section.family).huggingface_exported
    back = {exported(section, key): one for key, one in to_huggingface(dict(ours.named_parameters()), section).items()}
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())
    content = config_json(section, max_position_embeddings=34, pad_token_id=1, labels=("start", "end"))
    (tmp_path / "config.json").write_text(json.dumps(content))
    again = AutoModelForQuestionAnswering.from_config(AutoConfig.from_pretrained(tmp_path))
    assert content["architectures"] == [type(again).__name__] == [type(theirs).__name__]
    again.load_state_dict(theirs.state_dict())

    # it is a base of another
    save_file(state, tmp_path / "model.safetensors")
    names = {parameter for parameter, _ in ours.named_parameters()}
    assert names - PretrainedReader(tmp_path, section).names == {"head.weight", "head.bias"}
