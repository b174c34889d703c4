"""How many bytes of text each token of a vocabulary is, for losses that do not depend on the vocabulary."""

import json
import re
from typing import Any

from megatrain.data.text.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # of SentencePiece's byte fallback
_SPACE = "▁"


def byte_lengths(tokenizer: Tokenizer) -> list[int] | None:
    """Of each id; a special token, or an id without a token, is none. None: of this kind of tokenizer it is not known.

    A byte-level token is written with a character for each byte; SentencePiece's kind as its text, with ▁ for a space.
    """
    content = json.loads(tokenizer.content)
    decoder = json.dumps(content.get("decoder") or {}, ensure_ascii=False)
    is_byte_level, has_spaces = '"ByteLevel"' in decoder, _SPACE in decoder or '"Metaspace"' in decoder
    if is_byte_level == has_spaces:
        return None
    lengths = [0] * tokenizer.vocab_size
    for token, number in _tokens(content):
        if is_byte_level:
            lengths[number] = len(token)
        else:
            lengths[number] = 1 if _BYTE.fullmatch(token) else len(token.replace(_SPACE, " ").encode())
    for added in content.get("added_tokens") or ():
        lengths[added["id"]] = 0 if added.get("special") else len(added["content"].encode())
    return lengths


def _tokens(content: dict[str, Any]) -> list[tuple[str, int]]:
    vocabulary = content.get("model", {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        return list(vocabulary.items())
    return [(token, number) for number, (token, _) in enumerate(vocabulary)]  # Unigram: with a score each
