"""SentencePiece and tiktoken files become tokenizer.json files that give the same tokens."""

import base64
import io
import json
from pathlib import Path
from pydoc_data import topics

import pytest

from megatrain.base.errors import ConfigError, DataError
from megatrain.data.folder.manifest import read_manifest
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.data.text.tokenizer_import import import_tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
tiktoken = pytest.importorskip("tiktoken")

PROSE = [text for name, text in sorted(topics.topics.items())][:40]
ODD = [
    "Größe, 漢字かな交じり文, русский, हिन्दी 🙂👩‍🔬 e\u0301",
    "  two  spaces\t\n\n and tabs  ",
    "</s><s><unk> spelt out",
    "unseen: ¤ ☃ \U0001f9ff",
]


def train_sentencepiece(file: Path, **options) -> Path:
    model = io.BytesIO()
    lines = (line for text in PROSE for line in text.splitlines() if line)
    settings = {"vocab_size": 800, "minloglevel": 2, "num_threads": 1} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **settings)
    file.write_bytes(model.getvalue())
    return file


KINDS = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    | {"remove_extra_whitespaces": False, "split_digits": True, "pad_id": 3},
    "bpe with nfkc": {"model_type": "bpe", "byte_fallback": True},
    "bpe without bytes": {"model_type": "bpe"},
    "unigram": {"model_type": "unigram"},
    "unigram with bytes": {"model_type": "unigram", "byte_fallback": True, "add_dummy_prefix": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_sentencepiece(tmp_path, kind):
    file = train_sentencepiece(tmp_path / "tokenizer.model", **KINDS[kind])
    library = sentencepiece.SentencePieceProcessor(model_file=str(file))
    imported = import_tokenizer(file, tmp_path / "out")
    for text in PROSE[:10] + ODD:
        ids = library.encode(text)
        if "unigram" in kind:  # equally likely ways may be taken otherwise
            assert sorted(imported.encode(text)) == sorted(ids)
        else:
            assert imported.encode(text) == ids
        if library.unk_id() not in ids:  # which SentencePiece shows as ⁇
            assert imported.decode(ids) == library.decode(ids)
    assert imported.eos_id == library.eos_id()
    assert imported.pad_id == (library.pad_id() if library.pad_id() >= 0 else imported.eos_id)


def ranks_of(tokenizer_file: Path) -> dict[bytes, int]:
    """The byte tokens of a byte-level BPE, in their order."""
    from megatrain.data.text.tokenizer_import import _byte_letters

    byte_of = {letter: byte for byte, letter in enumerate(_byte_letters())}
    vocabulary = json.loads(tokenizer_file.read_text())["model"]["vocab"]
    tokens = sorted((number, token) for token, number in vocabulary.items() if not token.startswith("<|"))
    return {bytes(byte_of[letter] for letter in token): rank for rank, (_, token) in enumerate(tokens)}


@pytest.fixture
def ranks(tmp_path, tokenizer_folder) -> Path:
    file = tmp_path / "mine.tiktoken"
    pairs = ranks_of(tokenizer_folder / "tokenizer.json").items()
    file.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in pairs))
    return file


@pytest.mark.parametrize("pattern", ["cl100k", "o200k", "gpt2", r"\S+|\s+"])
def test_tiktoken(tmp_path, ranks, tokenizer_folder, pattern):
    from megatrain.data.text.tokenizer_import import _SCHEMES

    imported = import_tokenizer(ranks, tmp_path / "out", pattern)
    known = ranks_of(tokenizer_folder / "tokenizer.json")
    rule = _SCHEMES[pattern].pattern if pattern in _SCHEMES else pattern
    library = tiktoken.Encoding("mine", pat_str=rule, mergeable_ranks=known, special_tokens={})
    for text in PROSE[:10] + ODD:
        assert imported.encode(text) == library.encode_ordinary(text)
        assert imported.decode(imported.encode(text)) == text
    assert imported.eos_id == (_SCHEMES[pattern].eos_id if pattern in _SCHEMES else 398)


def test_a_foreign_file_serves_as_it_is(tmp_path, corpus, prepare_text):
    file = train_sentencepiece(tmp_path / "tokenizer.model", **KINDS["llama"])
    prepare_text(corpus, tmp_path / "out", file, workers=2)
    manifest = read_manifest(tmp_path / "out")
    assert Tokenizer.load(tmp_path / "out").sha256 == manifest.tokenizer_sha256
    assert manifest.tokenizer_sha256 == import_tokenizer(file, tmp_path / "imported").sha256


def test_what_cannot_be_imported(tmp_path, ranks, tokenizer_folder):
    with pytest.raises(DataError, match=r"does not say how it cuts text.*--pattern NAME.*cl100k"):
        import_tokenizer(ranks, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--pattern: \(: cannot be used"):
        import_tokenizer(ranks, tmp_path / "out", "(")
    (tmp_path / "noise").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError, match=r"is no tokenizer\.json, SentencePiece model or tiktoken file"):
        import_tokenizer(tmp_path / "noise", tmp_path / "out")
    with pytest.raises(DataError, match=r"is a tokenizer\.json already"):
        import_tokenizer(tokenizer_folder / "tokenizer.json", tmp_path / "out")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        import_tokenizer(tmp_path / "absent", tmp_path / "out")
    suffix = train_sentencepiece(tmp_path / "suffix.model", treat_whitespace_as_suffix=True)
    with pytest.raises(DataError, match="only BPE and unigram models with whitespace as a prefix"):
        import_tokenizer(suffix, tmp_path / "out")
    assert not (tmp_path / "out").exists()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        *((name, POINTER, "it is a git-lfs pointer.*git lfs pull") for name in ("tokenizer.json", "tokenizer.model")),
        *((name, b"", "is not a tokenizer: it is empty") for name in ("tokenizer.json", "tokenizer.model")),
        ("tokenizer.json", b"\n<!doctype html>", "it is an HTML page"),
        ("tokenizer.json", b"[1, 2]", r"is not JSON: it begins with b'\[1, 2\]'"),
        ("tokenizer.model", b"\x0a\x00", "cannot be imported: |is no tokenizer.json"),
        ("ranks.tiktoken", b"YQ== 99999999999999999999\n", "does not say how it cuts text"),
        ("cl100k_base.tiktoken", b"YQ== 99999999999999999999\n", "cannot be imported: "),
        ("cl100k_base.tiktoken", base64.b64encode(b"a" * 2000) + b" 0\n", "has 2,000 letters; at most 1,024 are read"),
        ("tekken.json", b'{"token_bytes": ' + b"[" * 100_000, "is JSON nested too deeply"),
        ("tekken.json", b'{"token_bytes": 1, "config": {}, "vocab": []}', "config.pattern: Field required"),
        (
            "tekken.json",
            b'{"config": {"pattern": "a", "default_vocab_size": 5, "default_num_special_tokens": 1000000000000}, '
            b'"vocab": [{"rank": 0, "token_bytes": "YQ=="}]}',
            "default_num_special_tokens: 1000000000000: Input should be less than",
        ),
    ],
)
def test_what_only_has_a_tokenizers_name(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        Tokenizer.load(tmp_path / name)


@pytest.mark.parametrize("name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_mistrals_own_sentencepiece_model(tmp_path, name):
    mistral = pytest.importorskip("mistral_common")
    file = Path(mistral.__path__[0]) / "data" / name
    library = sentencepiece.SentencePieceProcessor(model_file=str(file))
    imported = import_tokenizer(file, tmp_path / "out")
    for text in PROSE[:3] + ODD:
        assert imported.encode(text) == library.encode(text)
    assert (imported.vocab_size, imported.eos_token) == (library.vocab_size(), "</s>")


def test_mistrals_own_tekken(tmp_path):
    mistral = pytest.importorskip("mistral_common")
    imported = import_tokenizer(Path(mistral.__path__[0]) / "data" / "tekken_240718.json", tmp_path / "out")
    assert (imported.vocab_size, imported.eos_id, imported.eos_token) == (131072, 2, "</s>")
    for text in PROSE[:3] + ODD:
        assert imported.decode(imported.encode(text)) == text
