"""SentencePiece models and tiktoken files as a tokenizer.json, compared with the library that they belong to.

Everything else here knows tokenizer.json only, so a tokenizer is brought into that form once, when it is read. The
rules of both libraries can be said in it exactly: SentencePiece's BPE merges the pair whose piece has the best score,
tiktoken's the pair whose token has the lowest rank. A unigram model takes the likeliest pieces; where two ways are
equally likely (runs of one sign), the libraries may differ.
"""

import base64
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Model

from megatrain.base.errors import ConfigError, DataError, MegatrainError, PreflightError
from megatrain.base.files import parse_json, parse_model, read_bytes, recognise
from megatrain.data.text.tokenizer import EOS, PAD, SPLIT, Tokenizer, write_tokenizer

_O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class _Scheme(NamedTuple):
    """What a file of ranks leaves to the code that reads it."""

    pattern: str  # how text is cut before merging
    eos: str
    eos_id: int


_SCHEMES = {
    "cl100k": _Scheme(SPLIT, EOS, 100257),
    "o200k": _Scheme(_O200K, EOS, 199999),
    "gpt2": _Scheme(_GPT2, EOS, 50256),
    "llama3": _Scheme(SPLIT, "<|end_of_text|>", 128001),
}
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/=]+ \d+\r?\n")
_NEVER = -1e6  # a logarithm of a probability
_SAME_SCORE = 1e-3
_LIMIT = 512 << 20  # bytes of a file; the largest in use have about 20 MB
_LONGEST_TOKEN = 1024  # letters; the longest in use have 256
_TEKKEN_SPECIAL = ("<unk>", "<s>", "</s>")  # the first of Mistral's special tokens; the rest are named by number
_PROBES = (
    "",
    " ",
    "a",
    "The quick brown fox, it's said, jumps over 12345 lazy dogs!",
    "  two spaces,   three, and a tab\tthen\n\n\nlines \r\n end  ",
    "def f(x):\n    return {'a': [1, 2.5e-3], \"b\": x ** 2}  # comment\n",
    "Größe, naïve café, Ελληνικά, русский текст, العربية, हिन्दी, 漢字かな交じり文, 한국어",
    "🙂👩‍🔬🇩🇪 e\u0301 ﬁ ½ ① Å\u200b",
    "https://example.org/a_b?c=%20&d=1#e AAAA aaaaaaaaaaaaaaaa ------ ...... _____",
    "I'LL DON'T We've he'd ’tis CamelCaseWords SHOUTING snake_case x1y22z333",
)


def import_tokenizer(file: str | Path, out: str | Path, pattern: str | None = None) -> Tokenizer:
    """Write OUT/tokenizer.json and OUT/tokenizer_config.json from a foreign tokenizer file.

    Raises:
        DataError: the file is no such thing, gives other tokens than the library it is of, or OUT holds another.
        PreflightError: that library is not installed.
    """
    path = Path(file)
    content = read_bytes(path, limit=_LIMIT, error=DataError)
    if not is_foreign(content):
        raise DataError(f"{path}: is a tokenizer.json already: use it as it is")
    return write_tokenizer(convert(content, path, pattern), out)


def is_foreign(content: bytes) -> bool:
    """Whether this is anything but a tokenizer.json."""
    return content.lstrip()[:1] != b"{" or _is_tekken(content)


def convert(content: bytes, file: Path, pattern: str | None = None) -> Tokenizer:
    """A foreign tokenizer file's content as a tokenizer.

    Args:
        file: its name, which tells how a tiktoken file of OpenAI's cuts text.
        pattern: a name of _SCHEMES or a regular expression, for a tiktoken file of another name.

    Raises:
        DataError, PreflightError: as `import_tokenizer`.
    """
    try:
        if _is_tekken(content):
            return _from_tekken(content, file)
        if _RANK_LINE.match(content):
            return _from_tiktoken(content, file, pattern)
        if known := recognise(content[:64]):
            raise DataError(f"{file}: is not a tokenizer: it is {known}")
        if file.suffix == ".json":
            raise DataError(f"{file}: is not JSON: it begins with {content[:20]!r}")
        return _from_sentencepiece(content, file)
    except (MegatrainError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # the libraries raise their own, and panics, which are no Exception
        raise DataError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from None


def _from_sentencepiece(content: bytes, file: Path) -> Tokenizer:
    try:
        import sentencepiece
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise PreflightError(f"{file}: needs sentencepiece: pip install 'megatrain[sentencepiece]'") from None
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(content)
        library = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (DecodeError, RuntimeError):
        raise DataError(f"{file}: is no tokenizer.json, SentencePiece model or tiktoken file") from None
    trained, spec = proto.trainer_spec, proto.normalizer_spec
    if trained.model_type not in (1, 2) or trained.treat_whitespace_as_suffix:
        raise DataError(f"{file}: only BPE and unigram models with whitespace as a prefix can be imported")
    model = Model(_bpe_of(proto) if trained.model_type == 2 else _unigram_of(proto))
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    model.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    undo: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    model.decoder = decoders.Sequence(undo + ([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []))
    control = [AddedToken(p.piece, normalized=False, special=p.type == 3) for p in proto.pieces if p.type in (3, 4)]
    eos, pad = (library.id_to_piece(number) if number >= 0 else None for number in (library.eos_id(), library.pad_id()))
    model.add_special_tokens([token for token in control if token.special])
    model.add_tokens([token for token in control if not token.special])
    if eos is None:
        eos = EOS
        model.add_special_tokens([AddedToken(EOS, normalized=False, special=True)])
    probes = [f"a{piece.piece}b" for piece in proto.pieces if piece.type in (2, 3, 4)][:100]  # spelt out in text
    scores = [piece.score for piece in proto.pieces] if trained.model_type == 1 else None
    return _compared(model, file, eos, pad, "sentencepiece", library.encode, probes, scores)


def _bpe_of(proto: Any) -> models.BPE:
    """Every pair of pieces that makes a third merges, the best score first."""
    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    ordinary = [piece for piece in proto.pieces if piece.type in (1, 5)]
    merges = _merges(sorted(ordinary, key=lambda piece: -piece.score), vocabulary, lambda piece: piece.piece)
    return models.BPE(
        vocabulary,
        merges,
        unk_token=proto.trainer_spec.unk_piece or "<unk>",
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _unigram_of(proto: Any) -> models.Unigram:
    # control pieces and <unk> have score 0, the best of all, but SentencePiece never finds them in text
    vocabulary = [(piece.piece, _NEVER if piece.type in (2, 3) else piece.score) for piece in proto.pieces]
    unknown = next((number for number, piece in enumerate(proto.pieces) if piece.type == 2), None)
    if unknown is None:
        raise ValueError("it has no unknown token")
    return models.Unigram(vocabulary, unk_id=unknown, byte_fallback=proto.trainer_spec.byte_fallback)


def _from_tiktoken(content: bytes, file: Path, pattern: str | None) -> Tokenizer:
    try:
        pairs = [line.split() for line in content.splitlines() if line]
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    except ValueError:
        raise DataError(f"{file}: is not a tiktoken file: each line must be a token in base64 and its rank") from None
    scheme = _scheme(file, pattern, len(ranks))
    specials = {scheme.eos: max(scheme.eos_id, max(ranks.values()) + 1)}
    specials[PAD] = max(specials.values()) + 1
    return _from_ranks(ranks, scheme.pattern, specials, file, scheme.eos, PAD)


def _scheme(file: Path, pattern: str | None, tokens: int) -> _Scheme:
    name = pattern or {"r50k": "gpt2", "p50k": "gpt2"}.get(file.name.split("_")[0], file.name.split("_")[0])
    if name in _SCHEMES:
        return _SCHEMES[name]
    if pattern is None:
        raise DataError(
            f"{file}: a tiktoken file does not say how it cuts text. Import it with `megatrain data tokenizer import "
            f"--pattern NAME`, one of {', '.join(_SCHEMES)}, or a regular expression."
        )
    return _Scheme(pattern, EOS, tokens)


_Count = Annotated[int, Field(ge=0, le=10_000_000)]


class _TekkenPart(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _TekkenConfig(_TekkenPart):
    pattern: str
    default_vocab_size: _Count
    default_num_special_tokens: _Count


class _TekkenToken(_TekkenPart):
    rank: _Count
    token_bytes: str


class _TekkenSpecial(_TekkenPart):
    rank: _Count
    token_str: str


class _Tekken(_TekkenPart):
    config: _TekkenConfig
    vocab: list[_TekkenToken]
    special_tokens: list[_TekkenSpecial] | None = None


def _is_tekken(content: bytes) -> bool:
    return content.lstrip()[:1] == b"{" and b'"token_bytes"' in content[:4096]


def _from_tekken(content: bytes, file: Path) -> Tokenizer:
    """Mistral's JSON of ranks: special tokens come first, and of the ranks only so many are used."""
    where = f"{file}: is not a tekken.json as Mistral writes it"
    value = parse_model(_Tekken, parse_json(content, where, DataError), where, DataError)
    try:
        reserved = value.config.default_num_special_tokens
        used = value.vocab[: max(0, value.config.default_vocab_size - reserved)]
        ranks = {base64.b64decode(token.token_bytes): token.rank + reserved for token in used}
    except ValueError:
        raise DataError(f"{where}: token_bytes must be base64") from None
    named = {token.rank: token.token_str for token in value.special_tokens or []}
    names = dict(enumerate(_TEKKEN_SPECIAL)) | named
    specials = {names.get(number, f"<SPECIAL_{number}>"): number for number in range(reserved)}
    return _from_ranks(ranks, value.config.pattern, specials, file, "</s>", names.get(11) if named else None)


def _from_ranks(
    ranks: dict[bytes, int], pattern: str, specials: dict[str, int], file: Path, eos: str, pad: str | None
) -> Tokenizer:
    try:
        import tiktoken
    except ImportError:
        raise PreflightError(f"{file}: needs tiktoken: pip install 'megatrain[tiktoken]'") from None
    letters = _byte_letters()
    vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = _merges(sorted(vocabulary, key=lambda token: vocabulary[token]), vocabulary, lambda token: token)
    model = Model(models.BPE(vocabulary | specials, merges, ignore_merges=True))
    try:
        cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        library = tiktoken.Encoding(file.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except Exception as error:  # both raise their own
        raise ConfigError(f"--pattern: {pattern}: cannot be used: {error}") from None
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
    return _compared(model, file, eos, pad, "tiktoken", library.encode_ordinary)


def _merges(ordered: list[Any], vocabulary: dict[str, int], text: Callable[[Any], str]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, in the order of what it makes."""
    found = []
    for item in ordered:
        token = text(item)
        if len(token) > _LONGEST_TOKEN:
            raise ValueError(f"a token of it has {len(token):,} letters; at most {_LONGEST_TOKEN:,} are read")
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        found += sorted(
            (pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary),
            key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]),
        )
    return found


def _compared(
    model: Model,
    file: Path,
    eos: str,
    pad: str | None,
    library: str,
    encode: Callable[[str], list[int]],
    probes: Sequence[str] = (),
    scores: Sequence[float] | None = None,
) -> Tokenizer:
    """The tokenizer, once it has given the library's tokens for text of many kinds; by `scores`, equally good ones."""
    tokenizer = Tokenizer(model.to_str(pretty=False).encode(), name=str(file), eos=eos, pad=pad)
    for text in (*_PROBES, *probes):
        found, expected = tokenizer.encode(text), list(encode(text))
        if found != expected and not (scores and _as_likely(found, expected, scores)):
            raise DataError(f"{file}: cannot be imported: for {text!r:.60} it would give other tokens than {library}")
    return tokenizer


def _as_likely(found: list[int], expected: list[int], scores: Sequence[float]) -> bool:
    difference = sum(scores[token] for token in found) - sum(scores[token] for token in expected)
    return sorted(found) == sorted(expected) or (len(found) == len(expected) and abs(difference) < _SAME_SCORE)


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
