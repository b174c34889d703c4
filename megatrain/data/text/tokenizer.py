"""Text <-> token ids: a thin wrapper of `tokenizers`, and training of a byte-level BPE."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from megatrain.base.errors import ConfigError, DataError
from megatrain.base.files import parse_json, read_bytes, read_json, recognise
from megatrain.data.folder.hashed_files import make_folder, write_bytes
from megatrain.data.text.documents import read_documents
from megatrain.data.text.inputs import find_inputs

EOS = "<|endoftext|>"
PAD = "<|pad|>"
_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_LIMIT = 1 << 29  # bytes; the largest in use have some 30 MB
_KNOWN_EOS = (EOS, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_KNOWN_MASK = ("[MASK]", "<mask>", "<|mask|>")
_KNOWN_PAD = (PAD, "<|finetune_right_pad_id|>", "<pad>", "[PAD]")

# How text is cut before merging, as in Llama 3 (and, but for digits, GPT-4): contractions, words with one leading
# sign or space, groups of at most three digits, runs of signs, line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = 256  # tokens of one, that every vocabulary has
_SUBWORD_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"')  # WordPiece has it too, without merges
_NOT_OF_RUST = (KeyboardInterrupt, SystemExit, MemoryError)
_Encoded = TypeVar("_Encoded")


class Tokenizer:
    """A `tokenizer.json` and the ids of its end-of-document and padding tokens.

    Special tokens that occur in text are text: a document that spells out "<|endoftext|>" cannot end itself. For
    prompts and responses, in which they are special, see `prompts`.

    Args:
        content: of tokenizer.json.
        name: what messages call it.
        eos, pad: the tokens; default: those of a usual name.
    """

    def __init__(self, content: bytes, *, name: str, eos: str | None = None, pad: str | None = None) -> None:
        self._tokenizer = _parse(content, name)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._arguments = content, name, eos, pad
        self.content = content
        self.name = name
        self.sha256 = hashlib.sha256(content).hexdigest()
        eos_id = self._first_id((eos,) if eos else _KNOWN_EOS)
        if eos_id is None:
            raise DataError(
                f"{name}: eos_token: {eos or 'not given'}: has no such token. "
                f"Name its end-of-document token as eos_token in {_TOKENIZER_CONFIG} beside it."
            )
        pad_id = self._first_id((pad,) if pad else _KNOWN_PAD)
        self.eos_id: int = eos_id
        self.pad_id: int = eos_id if pad_id is None else pad_id
        self.eos_token, self.pad_token = (self._tokenizer.id_to_token(number) for number in (self.eos_id, self.pad_id))
        mask_id = self._first_id(_KNOWN_MASK)
        self.mask_token: str | None = None if mask_id is None else self._tokenizer.id_to_token(mask_id)
        # ids may have gaps: the largest one decides how many rows an embedding needs
        self.vocab_size: int = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a folder with tokenizer.json (and perhaps tokenizer_config.json), the file itself, or a foreign file.

        Raises:
            DataError: there is no such file, or it is not a tokenizer.
            PreflightError: it is a SentencePiece model or tiktoken file, and their library is not installed.
        """
        path = Path(path)
        file = path / _TOKENIZER if path.is_dir() else path
        if not file.exists():
            raise DataError(f"{path}: no {_TOKENIZER} here. Train one with `megatrain data tokenizer train`.")
        content = read_bytes(file, limit=_TOKENIZER_LIMIT, error=DataError)
        from megatrain.data.text.tokenizer_import import convert, is_foreign

        if is_foreign(content):
            if known := recognise(content[:64]):
                raise DataError(f"{file}: is not a tokenizer: it is {known}")
            return convert(content, file)
        config = _read_config(file.with_name(_TOKENIZER_CONFIG))
        eos, pad = token_text(config.get("eos_token")), token_text(config.get("pad_token"))
        return cls(content, name=str(file), eos=eos, pad=pad)

    def __reduce__(self) -> Any:
        return _again, self._arguments

    def without_special_tokens(self) -> str:
        """The tokenizer.json without its special tokens, for a library that would find them in text."""
        value = json.loads(self.content)
        value["added_tokens"] = [token for token in value.get("added_tokens", []) if not token.get("special")]
        return json.dumps(value)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Token ids of each text, uint32 [n]; nothing is added at either end.

        Raises:
            EncodeError: the library cannot encode one of them.
        """
        encodings = guarded(
            lambda batch: self._tokenizer.encode_batch_fast(batch, add_special_tokens=False), list(texts), self.name
        )
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def encode(self, text: str) -> list[int]:
        (ids,) = self.encode_batch([text])
        return [int(number) for number in ids]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Raises DataError where the tokenizer's decoder cannot."""
        numbers = [int(number) for number in ids]
        try:
            return str(self._tokenizer.decode(numbers, skip_special_tokens=skip_special_tokens))
        except _NOT_OF_RUST:
            raise
        except BaseException as error:
            raise DataError(f"{self.name}: cannot decode {len(numbers):,} tokens: {error}") from None

    def _first_id(self, names: Sequence[str]) -> int | None:
        ids = (self._tokenizer.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)


def _parse(content: bytes, name: str) -> tokenizers.Tokenizer:
    wrong = f"{name}: is not a tokenizer.json of the `tokenizers` library"
    if _SUBWORD_PREFIX.search(content):
        _check_merges(parse_json(content, wrong, DataError), wrong)
    try:
        return tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except _NOT_OF_RUST:
        raise
    except BaseException as error:  # `tokenizers` raises bare Exception, and panics, which are no `Exception`
        raise DataError(f"{wrong}: {error}") from None


def _check_merges(value: Any, wrong: str) -> None:
    """The library cuts the prefix off each merge's second part unseen, and aborts where that is within a character."""
    model = value.get("model") if isinstance(value, dict) else None
    prefix, merges = (
        (model.get("continuing_subword_prefix"), model.get("merges")) if isinstance(model, dict) else (0, 0)
    )
    if not isinstance(prefix, str) or not isinstance(merges, list):
        return
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        second = parts[-1] if isinstance(parts, list) and parts else ""
        if not str(second).startswith(prefix):
            raise DataError(
                f"{wrong}: model.merges: {second!r:.40} does not begin with the subword prefix {prefix!r:.40}"
            )


def _again(content: bytes, name: str, eos: str | None, pad: str | None) -> Tokenizer:
    return Tokenizer(content, name=name, eos=eos, pad=pad)


class EncodeError(DataError):
    """A text that a tokenizer cannot encode; `number` is its place among those given, so that a caller can name it."""

    number = 0


def guarded(encode: Callable[[list[str]], Sequence[_Encoded]], texts: list[str], name: str) -> Sequence[_Encoded]:
    """`encode(texts)`, whatever its Rust half raises: a regular expression that gives up is a panic, which is no
    `Exception`.

    Raises:
        EncodeError: names the first text that fails by itself.
    """
    try:
        return encode(texts)
    except _NOT_OF_RUST:
        raise
    except BaseException as error:
        if len(texts) == 1:
            raise EncodeError(f"{name}: cannot encode the text {_shortened(texts[0])!r}: {error}") from None
    return [_one(encode, texts, number, name) for number in range(len(texts))]


def _one(encode: Callable[[list[str]], Sequence[_Encoded]], texts: list[str], number: int, name: str) -> _Encoded:
    try:
        return guarded(encode, [texts[number]], name)[0]
    except EncodeError as error:
        error.number = number
        raise


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def train_tokenizer(
    inputs: Sequence[str],
    out: str | Path,
    vocab_size: int,
    *,
    text_field: str = "text",
    special_tokens: Sequence[str] = (),
) -> Tokenizer:
    """Train a byte-level BPE and write OUT/tokenizer.json and OUT/tokenizer_config.json.

    The same text gives the same files. transformers' AutoTokenizer opens the folder.

    Args:
        special_tokens: besides the end of a document and padding.

    Raises:
        DataError: an input is missing or unreadable, or OUT already holds another tokenizer.
        ConfigError: the vocabulary is too small to hold every byte.
    """
    special = list(dict.fromkeys((EOS, PAD, *special_tokens)))
    smallest = _BYTES + len(special)
    if vocab_size < smallest:
        raise ConfigError(f"--vocab-size: {vocab_size}: must be at least {smallest}: every byte has a token")
    files = find_inputs(inputs).inputs
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    documents = read_documents(files, text_field)
    texts: Iterator[str] = (document.content for document in documents if isinstance(document.content, str))
    tokenizer.train_from_iterator(texts, trainer)
    return write_tokenizer(Tokenizer(tokenizer.to_str(pretty=False).encode(), name="trained", eos=EOS, pad=PAD), out)


def write_tokenizer(tokenizer: Tokenizer, out: str | Path) -> Tokenizer:
    """Write OUT/tokenizer.json and OUT/tokenizer_config.json; a folder that holds the same already is left as it is.

    Raises:
        DataError: OUT holds another tokenizer, or cannot be written to.
    """
    file = Path(out) / _TOKENIZER
    if file.exists() and file.read_bytes() != tokenizer.content:
        raise DataError(f"{file}: is another tokenizer; data may depend on it. Choose another folder, or delete it.")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.mask_token is not None:
        config["mask_token"] = tokenizer.mask_token
    make_folder(file.parent)
    write_bytes(file.with_name(_TOKENIZER_CONFIG), (json.dumps(config, indent=2) + "\n").encode())
    write_bytes(file, tokenizer.content)
    return Tokenizer.load(out)


def _read_config(file: Path) -> dict[str, object]:
    config = read_json(file, error=DataError) if file.exists() else {}
    return config if isinstance(config, dict) else {}


def token_text(value: object) -> str | None:
    """transformers writes a token as its text, or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
