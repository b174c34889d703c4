"""What a tokenizer.json says of its ids, read without trust and without the `tokenizers` library: for the checks before
a run starts."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from megatrain.base.errors import DataError
from megatrain.base.files import parse_json, parse_model

_Id = Annotated[int, Field(ge=0, lt=1 << 31)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)


class _AddedToken(_Part):
    id: _Id
    content: str = ""


class _Model(_Part):
    # BPE and WordPiece map a token to its id; Unigram lists tokens in the order of their ids
    vocab: (
        Annotated[dict[str, _Id], Field(min_length=1)] | Annotated[list[list[Any]], Field(min_length=1, fail_fast=True)]
    )
    merges: list[Any] | None = None


class _TokenizerJson(_Part):
    model: _Model
    added_tokens: Annotated[list[_AddedToken], Field(fail_fast=True)] = []
    normalizer: Any = None
    pre_tokenizer: Any = None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids of a tokenizer, and what decides how text becomes them."""

    sha256: str  # of tokenizer.json
    ids: Mapping[str, int]  # by token
    rules: Mapping[str, Any]  # everything of it but its added tokens and what is put around a text

    @property
    def size(self) -> int:
        """The largest id, plus one: ids may have gaps."""
        return 1 + max(self.ids.values())

    def beyond(self, size: int) -> dict[str, int]:
        """Tokens that an embedding of `size` rows has no row for."""
        return {token: number for token, number in self.ids.items() if number >= size}

    def extends(self, other: "Vocabulary") -> bool:
        """Whether text has the ids that the other gives it, but where tokens that this one adds are spelt out."""
        return self.rules == other.rules and other.ids.items() <= self.ids.items()


def parse_vocabulary(content: bytes, where: object) -> Vocabulary:
    """The vocabulary of a tokenizer.json's content.

    Raises:
        DataError: begins with `where`; it is no such file, or holds an id that cannot be one.
    """
    name = f"{where}: is not a tokenizer.json as Hugging Face tokenizers write it"
    parsed = parse_model(_TokenizerJson, parse_json(content, name, DataError), name, DataError)
    vocab, added = parsed.model.vocab, parsed.added_tokens
    if isinstance(vocab, dict):
        ids = dict(vocab)
    else:
        ids = {str(entry[0]) if entry else "": number for number, entry in enumerate(vocab)}
    ids |= {token.content: token.id for token in sorted(added, key=lambda token: token.id)}
    rules = {
        **{key: value for key, value in parsed.model.model_dump().items() if value},
        "merges": [merge.split(" ") if isinstance(merge, str) else merge for merge in parsed.model.merges or []],
        "normalizer": parsed.normalizer,
        "pre_tokenizer": parsed.pre_tokenizer,
    }
    return Vocabulary(hashlib.sha256(content).hexdigest(), ids, rules)
