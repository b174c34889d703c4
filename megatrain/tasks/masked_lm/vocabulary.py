"""What masked language modelling asks of a tokenizer's files. No torch: the launcher asks too."""

import json

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import ConfigError
from megatrain.data.folder.manifest import TOKENIZER
from megatrain.data.text.tokenizer_files import TOKENIZER_CONFIG, Files, read_tokenizer, token_text
from megatrain.data.text.vocabulary import parse_vocabulary
from megatrain.tasks.masked_lm.section import MaskedLMSection

_KNOWN_MASKS = ("[MASK]", "<mask>", "<|mask|>")


def check_tokenizer(section: MaskedLMSection, path: str) -> None:
    """
    Raises:
        ConfigError: the tokenizer has no mask token.
        DataError, PreflightError: it cannot be read.
    """
    mask_id(section, read_tokenizer(path), path)


def mask_id(section: MaskedLMSection, files: Files, path: str) -> int:
    """See `check_tokenizer`."""
    ids = parse_vocabulary(files[TOKENIZER], path).ids
    said = token_text(json.loads(files[TOKENIZER_CONFIG]).get("mask_token")) if TOKENIZER_CONFIG in files else None
    names = [section.mask_token] if section.mask_token else [*([said] if said else []), *_KNOWN_MASKS]
    found = next((ids[name] for name in names if name in ids), None)
    if found is None:
        known = f"{section.mask_token!r} is no token of {path}" if section.mask_token else f"{path} names none"
        raise ConfigError(
            f"task.mask_token: {known}. Name one of its tokens that does not occur in text, or train a tokenizer with "
            "one: megatrain data tokenizer train --special-token '[MASK]'."
        )
    return found


def special_tokens(files: Files, size: int) -> NDArray[np.bool_]:
    """bool [size]: the tokenizer's special tokens, and rows that no token has."""
    value = json.loads(files[TOKENIZER])
    special = np.ones(size, np.bool_)
    ids = [number for number in parse_vocabulary(files[TOKENIZER], TOKENIZER).ids.values() if number < size]
    special[ids] = False
    special[[token["id"] for token in value.get("added_tokens", []) if token.get("special") and token["id"] < size]] = (
        True
    )
    return special


def continuations(files: Files, size: int) -> NDArray[np.bool_]:
    """bool [size]: tokens that continue the word before them.

    By the mark that the vocabulary has: WordPiece's "##" on continuations; a leading space, as "Ġ" of byte-level BPE or
    "▁" of SentencePiece, on tokens that begin a word, where those without it that begin with a letter or digit do not.
    """
    ids = parse_vocabulary(files[TOKENIZER], TOKENIZER).ids
    wordpiece = json.loads(files[TOKENIZER])["model"].get("type") == "WordPiece"
    found = np.zeros(size, np.bool_)
    for token, number in ids.items():
        if number < size:
            found[number] = token.startswith("##") if wordpiece else token[:1].isalnum() and token[0] not in "ĠĊĉč"
    return found
