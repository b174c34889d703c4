"""What masked language modelling asks of a run before it starts, and of a tokenizer."""

import json

import numpy as np
import pytest

from megatrain.base.errors import ConfigError
from megatrain.config.file import parse_config
from megatrain.data.text.tokenizer import train_tokenizer
from megatrain.data.text.tokenizer_files import read_tokenizer
from megatrain.tasks.masked_lm.section import MaskedLMSection
from megatrain.tasks.masked_lm.vocabulary import check_tokenizer, continuations, mask_id, special_tokens

BERT = {"family": "bert", "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
LLAMA = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
RUN = {
    "run": {"name": "masked"},
    "model": BERT,
    "task": {"name": "masked_lm"},
    "tokenizer": {"path": "tokenizer"},
    "data": {"sequence_length": 512, "train": [{"path": "data"}]},
    "training": {"steps": 10, "global_batch_size": 4},
}


def test_an_encoder_is_trained_by_it() -> None:
    assert parse_config(json.dumps(RUN)).task.mask_rate == 0.15


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": LLAMA}, "task.name: 'masked_lm': trains bidirectional models, and model.family llama is causal. "),
        ({"task": {}}, "task.name: 'pretrain_lm': trains causal models, and model.family bert is bidirectional. "),
        ({"tokenizer": None}, "tokenizer: task masked_lm needs the tokenizer's mask token. Add "),
        (
            {"task": {"name": "masked_lm", "random_share": 0.3}},
            r"task.random_share: 0.3: and task.mask_share \(0.8\) are more than 1 together",
        ),
        (
            {"data": {"sequence_length": 513, "train": [{"path": "data"}]}},
            r"data.sequence_length: 513: is longer than the model's learned positions \(512\). At most 512",
        ),
        (
            {"data": {"sequence_length": 64, "train": [{"path": "data", "format": "webdataset"}]}},
            "data.train.0.format: 'webdataset': task masked_lm reads prepared data only. Prepare it with",
        ),
        ({"task": {"name": "masked_lm", "mask_rate": 1.0}}, "task.mask_rate: 1.0: must be less than 1"),
    ],
)
def test_mistakes_are_named(change, said) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config(json.dumps(RUN | change))


def test_the_families_that_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"Families for it: .*bert"):
        parse_config(json.dumps(RUN | {"model": LLAMA}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.jsonl").write_text(json.dumps({"text": "the cat sat, the cats sit; unbelievable 12 cats " * 50}))

    def make(name: str, *special: str) -> str:
        train_tokenizer([str(folder / "text.jsonl")], folder / name, 280, special_tokens=special)
        return str(folder / name)

    return make


def test_a_mask_token_is_found_or_missed(trained) -> None:
    plain, masked = trained("plain"), trained("masked", "[MASK]")
    section = MaskedLMSection()
    assert mask_id(section, read_tokenizer(masked), masked) == 2
    with pytest.raises(ConfigError, match=r"task.mask_token: .*plain names none. Name one of its tokens .*--special"):
        check_tokenizer(section, plain)
    assert json.loads(read_tokenizer(masked)["tokenizer_config.json"])["mask_token"] == "[MASK]"
    named = MaskedLMSection(mask_token="<|pad|>")
    assert mask_id(named, read_tokenizer(plain), plain) == 1
    with pytest.raises(ConfigError, match=r"task.mask_token: '<hidden>' is no token of "):
        check_tokenizer(MaskedLMSection(mask_token="<hidden>"), masked)


def test_special_tokens_and_rows_without_one_are_not_predicted(trained) -> None:
    special = special_tokens(read_tokenizer(trained("masked", "[MASK]")), 384)
    assert special[:3].all()
    assert special[280:].all()
    assert not special[3:259].any(), "bytes are tokens as any"


def test_tokens_that_continue_a_word(trained) -> None:
    files = read_tokenizer(trained("masked", "[MASK]"))
    ids = json.loads(files["tokenizer.json"])["model"]["vocab"]
    continues = continuations(files, 384)
    for token, expected in {"Ġ": False, "s": True, ",": False, "Ġcat": False}.items():
        assert bool(continues[ids[token]]) == expected, token
    wordpiece = {
        "tokenizer.json": json.dumps({"model": {"type": "WordPiece", "vocab": {"un": 0, "##able": 1}}}).encode()
    }
    assert continuations(wordpiece, 2).tolist() == [False, True]
    assert np.asarray(special_tokens(wordpiece, 3)).tolist() == [False, False, True]
