import json
import os
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from megatrain.base.errors import ConfigError, DataError
from megatrain.data.text.tokenizer import EOS, PAD, Tokenizer, train_tokenizer

ODD = "tabs\tand  spaces, 12345 digits, ümläute, 漢字, 🙂\r\n\n  end "


def test_any_text_comes_back(tokenizer):
    assert tokenizer.decode(tokenizer.encode(ODD)) == ODD
    assert tokenizer.vocab_size == 400
    assert tokenizer.eos_id != tokenizer.pad_id


def test_batches_give_the_ids_of_single_texts(tokenizer):
    batch = tokenizer.encode_batch([ODD, "a", "", "the end"])
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in (ODD, "a", "", "the end")]


def test_special_tokens_in_text_are_text(tokenizer):
    text = f"a {EOS} b {PAD}"
    ids = [*tokenizer.encode(text), *tokenizer.encode_batch([text])[0].tolist()]
    assert tokenizer.eos_id not in ids
    assert tokenizer.pad_id not in ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_transformers_opens_the_folder(tokenizer_folder, tokenizer):
    theirs = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert theirs(ODD)["input_ids"] == tokenizer.encode(ODD)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert theirs.decode(tokenizer.encode(ODD)) == ODD


def test_training_is_deterministic(tmp_path, corpus, tokenizer):
    """In another process, with another hash seed and one thread."""
    code = (
        "import sys; from megatrain.data.text.tokenizer import train_tokenizer as t; t([sys.argv[1]], sys.argv[2], 400)"
    )
    environment = os.environ | {
        "PYTHONHASHSEED": "77",
        "RAYON_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run([sys.executable, "-c", code, str(corpus), str(tmp_path)], check=True, env=environment)
    assert Tokenizer.load(tmp_path).sha256 == tokenizer.sha256


def test_another_tokenizer_is_never_overwritten(tmp_path, corpus):
    train_tokenizer([str(corpus)], tmp_path, 300)
    before = (tmp_path / "tokenizer.json").read_bytes()
    train_tokenizer([str(corpus)], tmp_path, 300)  # the same again is no loss
    with pytest.raises(DataError, match="is another tokenizer; data may depend on it"):
        train_tokenizer([str(corpus)], tmp_path, 310)
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_a_vocabulary_that_cannot_hold_every_byte(tmp_path, corpus):
    with pytest.raises(ConfigError, match="--vocab-size: 100: must be at least 258"):
        train_tokenizer([str(corpus)], tmp_path, 100)


def test_missing_and_broken_tokenizers(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.json here"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"is not a tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_the_end_of_document_token_is_named_by_the_config(tmp_path, tokenizer_folder, tokenizer):
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    assert Tokenizer.load(tmp_path).eos_id == tokenizer.eos_id  # by its usual name
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": PAD}}))
    assert Tokenizer.load(tmp_path / "tokenizer.json").eos_id == tokenizer.pad_id
    config.write_text(json.dumps({"eos_token": "<gone>"}))
    with pytest.raises(DataError, match="eos_token: <gone>: has no such token"):
        Tokenizer.load(tmp_path)


def hostile(tokenizer, **parts):
    """The tokenizer's file with other parts; those named model_… are the model's."""
    value = json.loads(tokenizer.content)
    for name, part in parts.items():
        if name.startswith("model_"):
            value["model"][name.removeprefix("model_")] = part
        else:
            value[name] = part
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}},
        {"model_continuing_subword_prefix": "a long one"},
        {
            "model_continuing_subword_prefix": "z",
            "model_merges": ["a é"],
            "model_vocab": {"a": 0, "é": 1, "aé": 2, EOS: 3},
        },
        {"model_continuing_subword_prefix": "z", "model_merges": [[], 7, "é"]},
        {"model_unk_token": 7},
        {"model": 7},
    ],
)
def test_what_makes_the_library_panic_is_refused(tokenizer, parts):
    with pytest.raises(DataError, match=r"^x: is not a tokenizer\.json"):
        Tokenizer(hostile(tokenizer, **parts), name="x")


def test_a_decoder_that_panics_is_named(tokenizer):
    strip = {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}
    broken = Tokenizer(hostile(tokenizer, decoder=strip), name="x")
    with pytest.raises(DataError, match=r"^x: cannot decode 1 tokens: "):
        broken.decode(tokenizer.encode("a"))
