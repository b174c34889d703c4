"""BERT and RoBERTa of transformers: the same function, the same weights there and back."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.huggingface.config_json import config_json, read_pretrained
from megatrain.huggingface.export_files import Source, described
from megatrain.huggingface.names import from_huggingface, to_huggingface, wholes
from megatrain.huggingface.reader import PretrainedReader
from megatrain.huggingface.weight_files import weight_files
from megatrain.model.build import build_model
from megatrain.model.families.bert.section import BertSection
from megatrain.model.families.modernbert.section import ModernBertSection
from megatrain.model.family import FAMILIES
from tests.packing import check_packed

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "vocab_size": 64,
    "initializer_range": 0.3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
SMALL: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 8}
THEIRS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (BertConfig, BertForMaskedLM, {"max_position_embeddings": 32}),
    "bert-one-type": (BertConfig, BertForMaskedLM, {"max_position_embeddings": 40, "type_vocab_size": 1}),
    "roberta": (RobertaConfig, RobertaForMaskedLM, {"max_position_embeddings": 34, "layer_norm_eps": 1e-5}),
    "roberta-from-0": (RobertaConfig, RobertaForMaskedLM, {"max_position_embeddings": 32, "pad_token_id": -1}),
    "roberta-from-1": (RobertaConfig, RobertaForMaskedLM, {"max_position_embeddings": 33, "pad_token_id": 0}),
}


def their_model(name: str) -> PreTrainedModel:
    config, module, fields = THEIRS[name]
    torch.manual_seed(0)
    model = module(config(**SIZES, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norm weights of one, and biases of zero, would hide a swapped pair
                parameter.uniform_(0.5, 1.5)
    return model


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def some_ids() -> torch.Tensor:
    return torch.randint(2, 64, (3, 32), generator=torch.Generator().manual_seed(0))  # 1 would be RoBERTa's padding


@pytest.mark.parametrize("name", THEIRS)
def test_the_same_logits_and_the_same_weights_there_and_back(name, tmp_path) -> None:
    theirs = their_model(name)
    theirs.config.save_pretrained(tmp_path)
    section, longest = read_pretrained(tmp_path)
    assert longest == (40 if name == "bert-one-type" else 32)
    state = weights_of(theirs)

    ours = build_model(section)
    ours.load_state_dict(from_huggingface(state, section), strict=False)
    with torch.no_grad():
        expected, got = theirs(input_ids=some_ids()).logits, ours(some_ids())
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    back = to_huggingface(dict(ours.named_parameters()), section)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("name", THEIRS)
def test_an_exported_configuration_is_the_same_model_to_transformers(name, tmp_path) -> None:
    theirs = their_model(name)
    theirs.config.save_pretrained(tmp_path)
    section, _ = read_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | config_json(section, max_position_embeddings=8)
    config, module, _ = THEIRS[name]
    assert content["architectures"] == [module.__name__]
    again = module(config.from_dict(content)).eval()
    again.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=some_ids()).logits, theirs(input_ids=some_ids()).logits)
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_pretrained(tmp_path)[0] == section


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_packed_documents_never_see_each_other(name, tmp_path) -> None:
    """Positions of each begin anew, behind RoBERTa's padding."""
    check_packed(their_model(name), tmp_path, some_ids()[:2, :12])


def test_what_pretraining_adds_is_read_past(tmp_path) -> None:
    """A pooler, and a head of next-sentence prediction."""
    torch.manual_seed(0)
    theirs = BertForPreTraining(BertConfig(**SIZES, max_position_embeddings=32))
    theirs.config.save_pretrained(tmp_path)
    tensors = weights_of(theirs)
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.bias"} <= tensors.keys()
    tensors |= {"cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone()}
    tensors |= {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].clone()}
    save_file(tensors, tmp_path / "model.safetensors")
    section, _ = read_pretrained(tmp_path)
    assert "cls.predictions.bias" in weight_files(tmp_path, section)
    assert not any("pooler" in name for name in weight_files(tmp_path, section))
    save_file(tensors | {"bert.extra.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"bert.extra.weight: is not a weight of this architecture"):
        weight_files(tmp_path, section)


def test_norms_under_their_old_names_are_read(tmp_path) -> None:
    """As in the safetensors of `bert-base-uncased`; the reader finds them where they are."""
    theirs = their_model("bert")
    theirs.config.save_pretrained(tmp_path)
    state = weights_of(theirs)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {
        next((name.removesuffix(new) + before for new, before in old.items() if name.endswith(new)), name): tensor
        for name, tensor in state.items()
    }
    assert renamed.keys() != state.keys()
    save_file(renamed, tmp_path / "model.safetensors")
    section, _ = read_pretrained(tmp_path)
    assert weight_files(tmp_path, section).keys() == renamed.keys()
    expected = from_huggingface(state, section)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in from_huggingface(renamed, section).items())
    reader = PretrainedReader(tmp_path, section)
    assert set(reader._stored.values()) == renamed.keys()


def test_a_roberta_is_known_by_its_model_type(tmp_path) -> None:
    """Wherever its positions begin; where position_offset says so, as it has been said of old."""
    for padding, model_type in ((-1, "roberta"), (0, None), (1, None)):
        (tmp_path / "config.json").write_text(json.dumps(SIZES | {"model_type": "roberta", "pad_token_id": padding}))
        section, longest = read_pretrained(tmp_path)
        assert (section.model_type, section.position_offset, longest) == (model_type, padding + 1, 511 - padding)
        assert config_json(section, max_position_embeddings=8)["pad_token_id"] == padding
        assert next(iter(wholes(section))).startswith("roberta.")


def test_a_bert_with_an_offset_is_refused() -> None:
    section = BertSection(**SMALL, model_type="bert", position_offset=2)
    (issue,) = FAMILIES.get("bert").issues(section)
    assert issue[:3] == ("position_offset", 2, "positions of model.model_type 'bert' begin at 0")


def source(padding: int | None, *, offset: int = 2) -> Source:
    """Of a RoBERTa that was pretrained here, with a tokenizer whose padding has this id."""
    section = BertSection(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=2, vocab_size=8, max_position_embeddings=34,
        position_offset=offset,
    )  # fmt: skip
    vocabulary = {"a": 5, "b": 3} | ({} if padding is None else {"<pad>": padding})
    tokenizer = {
        "tokenizer.json": json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary}}).encode(),
        "tokenizer_config.json": json.dumps({"pad_token": "<pad>"} if padding is not None else {}).encode(),
    }
    return Source(
        model=section, dtype="float32", positions=16, tokenizer=tokenizer, base={}, end_id=5, end_token="a",
        pad_token=None,
    )  # fmt: skip


def test_padding_of_an_exported_roberta_is_where_its_positions_begin() -> None:
    for padding in (1, None):
        files = described(source(padding))
        config = json.loads(files["config.json"])
        assert (config["pad_token_id"], config["max_position_embeddings"]) == (1, 34)
        assert json.loads(files["tokenizer_config.json"])["model_max_length"] == 32
    assert json.loads(described(source(0, offset=0))["config.json"])["pad_token_id"] == 0, "of a BERT: any"
    with pytest.raises(ConfigError, match=r"model.position_offset: 2: transformers begins .* which is 0 in the run's"):
        described(source(0))


def test_an_exported_encoder_names_the_tokens_around_a_text() -> None:
    """By what the tokenizer's files say, or by their usual names; never those of somebody else's vocabulary."""
    modernbert = ModernBertSection(**SMALL, intermediate_size=16)
    for model in (source(None, offset=0).model, modernbert):
        for vocabulary, said, ids in (
            ({"[CLS]": 6, "[SEP]": 4}, {}, (6, 4)),
            ({"<s>": 6, "</s>": 4}, {"cls_token": "<s>", "sep_token": {"content": "</s>"}}, (6, 4)),
            ({}, {}, (None, None)),
        ):
            tokenizer = {
                "tokenizer.json": json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 5} | vocabulary}}).encode(),
                "tokenizer_config.json": json.dumps(said).encode(),
            }
            files = described(replace(source(None), model=model, tokenizer=tokenizer))
            config = json.loads(files["config.json"])
            assert (config["cls_token_id"], config["sep_token_id"]) == ids
            read = AutoConfig.for_model(**config)
            assert (read.cls_token_id, read.sep_token_id) == ids
            assert "cls_token_id" not in json.loads(files["generation_config.json"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act: is 'relu'; megatrain has 'bert' with 'gelu' only"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: is 'relative_key'; megatrain has"),
        ({"is_decoder": True}, "is_decoder: is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings: is False; megatrain has"),
        ({"num_attention_heads": 5}, "num_attention_heads: 5: does not divide model.hidden_size (24)"),
        (
            {"model_type": "roberta", "pad_token_id": 64},
            "pad_token_id: is 64; positions of a 'roberta' begin behind it, so that it must be from -1 to 63. Write",
        ),
        ({"model_type": "roberta", "pad_token_id": 3, "max_position_embeddings": 4}, "pad_token_id: is 3; positions"),
        ({"model_type": "roberta", "pad_token_id": -2}, "pad_token_id: is -2; positions of a 'roberta' begin"),
        ({"model_type": "roberta", "pad_token_id": None}, "pad_token_id: is null; positions of a 'roberta' begin"),
    ],
)
def test_what_the_architecture_has_not_is_refused(change, said, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"model_type": "bert"} | change))
    with pytest.raises(ConfigError) as caught:
        read_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {said}")
