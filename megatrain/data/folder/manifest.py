"""`manifest.json`: what a prepared folder holds, and everything that decided its bytes. Free of torch and NumPy.

The manifest is written last: a folder that has one is complete. It carries the hash of its own content, which names
the data set in checkpoints.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from megatrain.data.folder.files import FileRecord
from megatrain.data.folder.locations import join, location, read_file
from megatrain.errors import DataError

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
INDEX = "index.npz"
TOKENIZER = "tokenizer.json"
SOURCES = "sources.jsonl"
SHORT_HASH_DIGITS = 12  # of a manifest's hash, as a loader's state keeps it: 48 bits

Part = Literal["train", "holdout"]


@dataclass(frozen=True, slots=True)
class SourceList:
    """The inputs, of which there may be millions: `sources.jsonl` names each, with its size and hash."""

    count: int
    bytes: int
    sha256: str  # of sources.jsonl


@dataclass(frozen=True, slots=True)
class Packing:
    """How `best_fit` fills rows; it decides the sequence length when the data is prepared."""

    sequence_length: int  # inputs of a row; one token more is stored, the target of the last
    window_tokens: int  # documents are packed together until they hold so many tokens


@dataclass(frozen=True, slots=True)
class PackedRows:
    """What packing by best fit came to, and what concatenation would have come to for the same documents."""

    rows: int = 0
    padding: int = 0  # slots of rows that hold no token
    pieces: int = 0  # parts of documents
    documents_cut: int = 0  # into several rows, because they are longer than one
    documents_cut_by_concat: int = 0  # by the end of a row, if they were put one behind the other
    targets: int = 0  # labels: every token of every document but its first


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the bytes of a prepared folder: the same recipe gives the same files."""

    part: Part
    holdout: float  # the share of the documents that the hold-out got
    text_field: str
    sources: SourceList
    tokenizer_sha256: str
    vocab_size: int
    eos_id: int
    dtype: Literal["uint16", "uint32"]
    block_tokens: int
    shard_blocks: int
    packing: Packing | None  # None: documents are put one behind the other
    selection: dict[str, Any]  # which documents are left out; see `selection.SelectionPolicy`
    versions: dict[str, str]

    def differences(self, other: "Recipe") -> list[str]:
        """The fields in which two recipes differ."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One prepared folder: `tokens` tokens of `documents` documents, the EOS after each included."""

    recipe: Recipe
    tokens: int
    documents: int
    blocks: int
    packed: PackedRows | None  # with `recipe.packing`
    left_out: dict[str, int]  # documents of all inputs that the selection left out, by reason
    shards: tuple[FileRecord, ...]
    index_sha256: str

    @property
    def block_tokens(self) -> int:
        return self.recipe.block_tokens

    @property
    def vocab_size(self) -> int:
        """The tokenizer's: every token id is below it."""
        return self.recipe.vocab_size

    @property
    def eos_id(self) -> int:
        return self.recipe.eos_id

    @property
    def tokenizer_sha256(self) -> str:
        return self.recipe.tokenizer_sha256

    @cached_property
    def manifest_hash(self) -> str:
        """SHA-256 of the canonical content, in hexadecimal: the name of this data set."""
        return _content_hash(self._content())

    def rows_per_block(self, sequence_length: int) -> int:
        """Rows of `sequence_length` inputs and one more target in a full block.

        Raises:
            DataError: the sequence length does not divide the block length, or is not the one of the packed rows.
        """
        packing = self.recipe.packing
        if packing and sequence_length != packing.sequence_length:
            raise DataError(
                f"data.sequence_length: {sequence_length}: this data was packed by best fit into rows of "
                f"{packing.sequence_length}. Set it to {packing.sequence_length}, or prepare again."
            )
        if self.block_tokens % sequence_length:
            divisors = [d for d in range(1, self.block_tokens + 1) if self.block_tokens % d == 0]
            near = min(divisors, key=lambda divisor: (abs(divisor - sequence_length), divisor))
            raise DataError(
                f"data.sequence_length: {sequence_length}: does not divide the block length of the prepared data "
                f"({self.block_tokens} tokens). Try {near}, or prepare again with --block-tokens "
                f"{max(1, self.block_tokens // sequence_length) * sequence_length}."
            )
        return self.block_tokens // sequence_length

    def row_stride(self, sequence_length: int) -> int:
        """Tokens from the start of a row to the start of the next: packed rows do not share their last token."""
        return sequence_length + 1 if self.recipe.packing else sequence_length

    def rows(self, sequence_length: int) -> int:
        """Rows in all blocks. Of a partial last block, whole rows count."""
        if self.packed:
            self.rows_per_block(sequence_length)
            return self.packed.rows
        full_blocks = max(0, self.tokens - 1) // self.block_tokens
        tail = self.tokens - full_blocks * self.block_tokens
        return full_blocks * self.rows_per_block(sequence_length) + max(0, tail - 1) // sequence_length

    def dumps(self) -> str:
        return json.dumps(self._content() | {"manifest_hash": self.manifest_hash}, indent=2) + "\n"

    def _content(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION} | asdict(self)


def read_manifest(path: str | Path) -> Manifest:
    """Read the manifest of a prepared folder, here or at an address, or of the one that `path` (a manifest.json) is in.

    Raises:
        DataError: there is none, it was changed after it was written, or its format is not this version's.
    """
    folder = location(path)
    folder = "." if folder == MANIFEST else folder.removesuffix(f"/{MANIFEST}")
    file = join(folder, MANIFEST)
    try:
        content = json.loads(read_file(folder, MANIFEST))
    except FileNotFoundError:
        raise DataError(
            f"{path}: is not a prepared folder: it has no {MANIFEST}. Run `megatrain data prepare`."
        ) from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise _corrupt(file) from None
    if not isinstance(content, dict):
        raise _corrupt(file)
    if content.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{file}: format_version: {content.get('format_version')}: this megatrain reads {FORMAT_VERSION}. "
            "Prepare the data again."
        )
    expected = content.pop("manifest_hash", None)
    if expected != _content_hash(content):
        raise _corrupt(file)
    try:
        return _manifest(content)
    except (KeyError, TypeError):
        raise _corrupt(file) from None


def recipe_from_json(value: dict[str, Any]) -> Recipe:
    """The inverse of `dataclasses.asdict`. Raises KeyError or TypeError for anything else."""
    packing = value["packing"]
    parts = {"sources": SourceList(**value["sources"]), "packing": Packing(**packing) if packing else None}
    return Recipe(**cast(Any, value | parts))


def _manifest(content: dict[str, Any]) -> Manifest:
    known = {key: value for key, value in content.items() if key != "format_version"}
    parts = {
        "recipe": recipe_from_json(content["recipe"]),
        "packed": PackedRows(**content["packed"]) if content["packed"] else None,
        "shards": tuple(FileRecord(**value) for value in content["shards"]),
    }
    return Manifest(**known | parts)


def _content_hash(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _corrupt(file: str) -> DataError:
    return DataError(f"{file}: was damaged or edited: its content does not match its hash. Prepare the data again.")
