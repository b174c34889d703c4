"""Tokenising batches of documents: with `tokenizers`, or with gigatoken, which is checked against it in every run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import DataError, PreflightError
from megatrain.data.preparation.workers import map_batches
from megatrain.data.text.tokenizer import EncodeError, Tokenizer

Tag = TypeVar("Tag")
Content = str | NDArray[np.int64]  # a text, or tokens that somebody else has made

_CHECK_EVERY = 256  # documents: one of so many is tokenised by `tokenizers` as well
_RENEW_CHARACTERS = 1 << 28  # gigatoken remembers every word it meets: start afresh after so much text
_ODD_TEXTS = (
    "",
    " ",
    "it's 12345 o'clock\t\r\n\n  end ",
    "ümläute, 漢字, 🙂\u200d🔬, e\u0301",
    "\x00\x1b[0m <s> [INST] </s>",
)


class Encoded(NamedTuple):
    """The documents of a batch, concatenated, each with EOS at its end."""

    tokens: NDArray[np.uint32]
    ends: NDArray[np.int64]  # one past the EOS of each document

    def documents(self) -> list[NDArray[np.uint32]]:
        return np.split(self.tokens, self.ends[:-1])


class Failure(NamedTuple):
    """Which document of a batch cannot be tokenised, and why: only whoever read it knows its place."""

    number: int
    reason: str


def encode_documents(
    batches: Iterable[tuple[Tag, Sequence[Content]]],
    tokenizer: Tokenizer,
    workers: int,
    *,
    gigatoken: bool = False,
    where: Callable[[Tag, int], str] = lambda tag, number: f"{tag} {number}",
) -> Iterator[tuple[Tag, Encoded]]:
    """Tokens of each document, batch by batch in the order given.

    Args:
        batches: pairs of anything and the documents that belong to it.
        where: what to call document `number` of a batch in a message.
        workers: processes; gigatoken stays in this one and uses threads of its own.

    Raises:
        DataError: a document cannot be tokenised, a worker process died, or gigatoken's tokens are not those of
            `tokenizers`.
        PreflightError: gigatoken is not installed.
    """
    make = partial(GigatokenEncoder if gigatoken else Encoder, tokenizer)
    for tag, result in map_batches(batches, make, 1 if gigatoken else workers):
        if isinstance(result, Failure):
            raise DataError(f"{where(tag, result.number)}: {result.reason}")
        yield tag, result


class Encoder:
    """Contents -> `Encoded`, with the `tokenizers` library; or a `Failure`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, contents: Sequence[Content]) -> Encoded | Failure:
        try:
            return self._encoded(contents)
        except EncodeError as error:
            return Failure(error.number, str(error))

    def _encoded(self, contents: Sequence[Content]) -> Encoded:
        texts = [content for content in contents if isinstance(content, str)]
        if len(texts) == len(contents):
            return _with_ends(*self._encode(texts), self.tokenizer.eos_id)
        try:
            tokens, counts = self._encode(texts)
        except EncodeError as error:
            error.number = [i for i, content in enumerate(contents) if isinstance(content, str)][error.number]
            raise
        encoded = iter(np.split(tokens, np.cumsum(counts)[:-1]))
        mixed = [next(encoded) if isinstance(content, str) else self._without_eos(content) for content in contents]
        return _with_ends(np.concatenate(mixed), np.array([len(part) for part in mixed]), self.tokenizer.eos_id)

    def _encode(self, texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Tokens of all texts, uint32 [n], and how many each has."""
        parts = self.tokenizer.encode_batch(texts)
        return np.concatenate([np.empty(0, np.uint32), *parts]), np.array([len(part) for part in parts], dtype=np.int64)

    def _without_eos(self, tokens: NDArray[np.int64]) -> NDArray[np.uint32]:
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= self.tokenizer.vocab_size):
            raise DataError(
                f"--tokenizer: its vocabulary is {self.tokenizer.vocab_size}, and the tokens to import reach from "
                f"{tokens.min()} to {tokens.max()}. Give the tokenizer that they were made with."
            )
        ended = len(tokens) and tokens[-1] == self.tokenizer.eos_id
        return (tokens[:-1] if ended else tokens).astype(np.uint32)


class GigatokenEncoder(Encoder):
    """The same with gigatoken: the first documents of a run, one in so many of the others, and odd texts are compared.

    Raises:
        PreflightError: gigatoken is not installed.
        DataError: a text has other tokens than with `tokenizers`, or gigatoken does not know this kind of tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        try:
            import gigatoken
        except ImportError:
            raise PreflightError("--gigatoken: is not installed: pip install 'megatrain[gigatoken]'") from None
        self._library = gigatoken
        self._content = tokenizer.without_special_tokens()
        self._seen_documents = 0
        self._renew()
        odd = [*_ODD_TEXTS, tokenizer.decode([tokenizer.eos_id, tokenizer.pad_id])]
        self._compare(odd, *self._run(odd), range(len(odd)))

    def _encode(self, texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        self._seen_characters += sum(map(len, texts))
        if self._seen_characters > _RENEW_CHARACTERS:
            self._renew()
        tokens, counts = self._run(texts)
        to_next = -self._seen_documents % _CHECK_EVERY
        checked = range(to_next, len(texts), _CHECK_EVERY) if self._seen_documents else range(min(64, len(texts)))
        self._compare(texts, tokens, counts, checked)
        self._seen_documents += len(texts)
        return tokens, counts

    def _run(self, texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        layout = self._fast.encode_batch(texts).layout
        offsets = np.asarray(layout.offsets.data, dtype=np.int64)
        content = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return content.astype(np.uint32, copy=False), np.diff(offsets)

    def _compare(
        self, texts: list[str], tokens: NDArray[np.uint32], counts: NDArray[np.int64], checked: Iterable[int]
    ) -> None:
        chosen = list(checked)
        ends = np.cumsum(counts)
        try:
            expected = self.tokenizer.encode_batch([texts[number] for number in chosen])
        except EncodeError as error:
            error.number = chosen[error.number]
            raise
        for number, ids in zip(chosen, expected, strict=True):
            if not np.array_equal(tokens[ends[number] - counts[number] : ends[number]], ids):
                raise DataError(
                    f"--gigatoken: gives other tokens than `tokenizers` for {texts[number]!r:.60}. Prepare without it."
                )

    def _renew(self) -> None:
        self._seen_characters = 0
        try:
            self._fast = self._library.Tokenizer.from_json(self._content)
        except Exception as error:  # whatever its Rust half raises
            raise DataError(f"--gigatoken: cannot take this tokenizer: {error}. Prepare without it.") from None


def _with_ends(tokens: NDArray[np.uint32], counts: NDArray[np.int64], eos_id: int) -> Encoded:
    ends = np.cumsum(counts + 1)
    marked = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint32)
    is_eos = np.zeros(len(marked), dtype=bool)
    is_eos[ends - 1] = True
    marked[is_eos] = eos_id
    marked[~is_eos] = tokens
    return Encoded(marked, ends)
