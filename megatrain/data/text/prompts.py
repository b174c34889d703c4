"""Prompts and responses as token ids, equal to those that `transformers` gives a model for the same text.

Documents of pretraining are encoded otherwise (`Tokenizer`): nothing is added to them, and special tokens that they
spell out are text.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray

from megatrain.data.text.framing import Frame, frame_of
from megatrain.data.text.tokenizer import EncodeError, Tokenizer, guarded

SpecialTokens = Literal["parse", "text"]
_PROBES = ("a", "0", "the", ".")  # one of them has a token in any vocabulary
_AT_ONCE = 1024  # texts; their encodings take some 100 bytes per token


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Tokens of prompt and response, int32 [n], without what the tokenizer adds; the first `prompt_tokens` of them
    are the prompt's; `offsets`, int64 [n, 2], are the characters of each: the first, and behind the last."""

    tokens: NDArray[np.int32]
    prompt_tokens: int
    offsets: NDArray[np.int64]


class PromptEncoder:
    """Encodes as `AutoTokenizer.from_pretrained(...)(text)` does.

    Args:
        special_tokens: "parse" takes a special token that a text spells out, such as <|im_start|>, for that token;
            "text" takes it for the characters that it consists of.

    Attributes:
        prefix, suffix: ids that the tokenizer puts in front of a text and behind it: mostly a BOS and nothing.
        special_ids: ids of all special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, special_tokens: SpecialTokens = "parse") -> None:
        self.tokenizer = tokenizer
        self._library = tokenizers.Tokenizer.from_str(tokenizer.content.decode("utf-8"))
        self._library.no_padding()
        self._library.no_truncation()
        self._library.encode_special_tokens = special_tokens == "text"
        added = self._library.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self.prefix, self.suffix = self._added()
        # also the part of it that trims offsets, which would move the boundary between prompt and response
        self._library.post_processor = None

    def prompt(self, text: str) -> list[int]:
        """What a model is to continue: without the suffix, and without a second prefix where the text spells it out.

        Raises:
            EncodeError: the text cannot be encoded.
        """
        (encoding,) = guarded(self._encode, [text], self.tokenizer.name)
        return [*self.prefix_of(encoding.ids), *encoding.ids]

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> Iterator[EncodedPair | EncodeError]:
        """Prompt and response encoded as one text, as a model sees them: a response encoded alone would begin with
        the space that many tokenizers put in front of a text. A token across the boundary is the response's.

        Yields an error in the place of a pair that cannot be encoded.
        """
        for first in range(0, len(pairs), _AT_ONCE):
            part = pairs[first : first + _AT_ONCE]
            try:
                encodings = guarded(self._encode, [prompt + response for prompt, response in part], self.tokenizer.name)
            except EncodeError as error:
                if len(part) == 1:
                    yield error
                else:
                    yield from (encoded for pair in part for encoded in self.pairs([pair]))
                continue
            for (prompt, _), encoding in zip(part, encodings, strict=True):
                offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
                yield EncodedPair(
                    np.array(encoding.ids, dtype=np.int32), _boundary(encoding.offsets, len(prompt)), offsets
                )

    def frame(self, texts: int) -> Frame:
        """What the tokenizer puts around one text, or around two."""
        library = tokenizers.Tokenizer.from_str(self.tokenizer.content.decode("utf-8"))
        library.no_padding()
        library.no_truncation()
        return frame_of(library, texts, self.tokenizer.name)

    def texts(self, texts: Sequence[str]) -> Iterator[tokenizers.Encoding | EncodeError]:
        """Each text, without what the tokenizer adds; an error in the place of one that cannot be encoded."""
        for first in range(0, len(texts), _AT_ONCE):
            part = texts[first : first + _AT_ONCE]
            try:
                yield from guarded(self._encode, list(part), self.tokenizer.name)
            except EncodeError as error:
                if len(part) == 1:
                    yield error
                else:
                    yield from (encoded for text in part for encoded in self.texts([text]))

    def prefix_of(self, ids: Sequence[int]) -> list[int]:
        """The prefix, but for a text that begins with it already: a second BOS is never wanted."""
        begins = len(self.prefix) > 0 and list(ids[: len(self.prefix)]) == self.prefix
        return [] if begins else self.prefix

    def text_of(self, number: int) -> str:
        """The token with an id, as the tokenizer writes it."""
        return self._library.id_to_token(number) or "?"

    def _encode(self, texts: list[str]) -> Sequence[tokenizers.Encoding]:
        found: Sequence[tokenizers.Encoding] = self._library.encode_batch(texts, add_special_tokens=False)
        return found

    def _added(self) -> tuple[list[int], list[int]]:
        """What the post-processor adds. tokenizer_config.json has no say, as in transformers."""
        for probe in _PROBES:
            encode = functools.partial(self._library.encode_batch, add_special_tokens=True)
            encoding = guarded(encode, [probe], self.tokenizer.name)[0]
            added = encoding.special_tokens_mask
            if 0 in added:
                first, last = added.index(0), len(added) - added[::-1].index(0)
                return encoding.ids[:first], encoding.ids[last:]
        return [], []


def _boundary(offsets: Sequence[tuple[int, int]], prompt_characters: int) -> int:
    """How many tokens end within the prompt; without a prompt, none."""
    if not prompt_characters:
        return 0
    return next((number for number, (_, end) in enumerate(offsets) if end > prompt_characters), len(offsets))
