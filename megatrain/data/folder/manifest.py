"""`manifest.json`: what a prepared folder holds, and everything that decided its bytes. Free of torch and NumPy.

The manifest is written last: a folder that has one is complete. It carries the hash of its own content, which names
the data set in checkpoints. That hash keeps nobody from writing what is not so: whatever is read is held against the
types below, with their bounds, and its numbers against each other.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from megatrain.base.errors import DataError
from megatrain.base.files import parse_json, parse_model
from megatrain.data.folder.hashed_files import Count, FileRecord, Sha256
from megatrain.data.folder.locations import join, location, read_file

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
INDEX = "index.npz"
TOKENIZER = "tokenizer.json"
SOURCES = "sources.jsonl"
MANIFEST_BYTES = 256 << 20  # at most: two million shards
MOST_BLOCK_TOKENS = 1 << 30  # counts within a block are 32-bit numbers
SHORT_HASH_DIGITS = 12  # of a manifest's hash, as a loader's state keeps it: 48 bits

Part = Literal["train", "holdout"]
_Positive = Annotated[Count, Field(ge=1)]
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class SourceList:
    """The inputs, of which there may be millions: `sources.jsonl` names each, with its size and hash."""

    __pydantic_config__ = _STRICT

    count: Count
    bytes: Count
    sha256: Sha256  # of sources.jsonl


@dataclass(frozen=True, slots=True)
class Packing:
    """How `best_fit` fills rows; it decides the sequence length when the data is prepared."""

    __pydantic_config__ = _STRICT

    sequence_length: _Positive  # inputs of a row; one token more is stored, the target of the last
    window_tokens: _Positive  # documents are packed together until they hold so many tokens


@dataclass(frozen=True, slots=True)
class PackedRows:
    """What packing by best fit came to, and what concatenation would have come to for the same documents."""

    __pydantic_config__ = _STRICT

    rows: Count = 0
    padding: Count = 0  # slots of rows that hold no token
    pieces: Count = 0  # parts of documents
    documents_cut: Count = 0  # into several rows, because they are longer than one
    documents_cut_by_concat: Count = 0  # by the end of a row, if they were concatenated
    targets: Count = 0  # labels: every token of every document but its first


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the bytes of a prepared folder: the same recipe gives the same files."""

    __pydantic_config__ = _STRICT

    part: Part
    holdout: Annotated[float, Field(strict=True, ge=0, lt=1)]  # the share of the documents that the hold-out got
    text_field: str
    sources: SourceList
    tokenizer_sha256: Sha256
    vocab_size: Annotated[_Positive, Field(le=1 << 32)]
    eos_id: Count
    dtype: Literal["uint16", "uint32"]
    block_tokens: Annotated[_Positive, Field(le=MOST_BLOCK_TOKENS)]
    shard_blocks: _Positive
    packing: Packing | None  # None: documents are concatenated
    selection: dict[str, Any]  # which documents are dropped; see `selection.SelectionPolicy`
    versions: dict[str, str]

    def differences(self, other: "Recipe") -> list[str]:
        """The fields in which two recipes differ."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One prepared folder: `tokens` tokens of `documents` documents, the EOS after each included."""

    __pydantic_config__ = _STRICT

    recipe: Recipe
    tokens: _Positive
    documents: _Positive
    blocks: _Positive
    packed: PackedRows | None  # with `recipe.packing`
    left_out: dict[str, Count]  # documents of all inputs that the selection dropped, by reason
    shards: tuple[FileRecord, ...]
    index_sha256: Sha256

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
            small = [d for d in range(1, math.isqrt(self.block_tokens) + 1) if self.block_tokens % d == 0]
            divisors = [*small, *(self.block_tokens // divisor for divisor in small)]
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
        content = parse_json(read_file(folder, MANIFEST, limit=MANIFEST_BYTES), file, DataError)
    except FileNotFoundError:
        raise DataError(
            f"{path}: is not a prepared folder: it has no {MANIFEST}. Run `megatrain data prepare`."
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: must be a JSON object")
    if content.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{file}: format_version: {content.get('format_version')!r:.40}: this megatrain reads {FORMAT_VERSION}. "
            "Prepare the data again."
        )
    edited = DataError(f"{file}: was damaged or edited: its content does not match its hash. Prepare the data again.")
    expected = content.pop("manifest_hash", None)
    if expected != _content_hash(content):
        raise edited
    del content["format_version"]
    manifest = parse_model(Manifest, content, file, DataError)
    if manifest.manifest_hash != expected:  # an integer where a float should be, and the like
        raise edited
    for problem in _contradictions(manifest):
        raise DataError(f"{file}: {problem}: not as `megatrain data prepare` writes it. Prepare the data again.")
    return manifest


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """Numbers that cannot all be true, and names that are not those of shards."""
    recipe, packed, packing = manifest.recipe, manifest.packed, manifest.recipe.packing
    if recipe.eos_id >= recipe.vocab_size:
        yield f"recipe.eos_id: {recipe.eos_id}: is outside the vocabulary of {recipe.vocab_size}"
    if recipe.dtype == "uint16" and recipe.vocab_size > 1 << 16:
        yield f"recipe.dtype: uint16: does not hold a vocabulary of {recipe.vocab_size}"
    if manifest.documents > manifest.tokens:
        yield f"documents: {manifest.documents}: are more than its {manifest.tokens} tokens"
    if (packing is None) != (packed is None):
        yield "packed: must be there where recipe.packing is, and nowhere else"
    elif packing and packed:
        if manifest.block_tokens % packing.sequence_length:
            yield f"recipe.packing.sequence_length: {packing.sequence_length}: does not divide recipe.block_tokens"
        slots = packed.rows * (packing.sequence_length + 1)
        if packed.padding + packed.pieces + packed.targets != slots:
            yield f"packed: {packed.pieces} pieces, {packed.targets} targets and padding do not fill {slots} slots"
    if manifest.blocks != (blocks := _blocks(manifest)):
        yield f"blocks: {manifest.blocks}: should be {blocks}"
    if len(manifest.shards) != (shards := -(-manifest.blocks // recipe.shard_blocks)):
        yield f"shards: {len(manifest.shards)} of them: should be {shards}"
    for number, shard in enumerate(manifest.shards):
        if shard.name != shard_name(number):
            yield f"shards.{number}.name: {shard.name!r:.40}: should be {shard_name(number)}"


def _blocks(manifest: Manifest) -> int:
    """How many blocks the counts come to."""
    packing = manifest.recipe.packing
    if manifest.packed and packing:
        return -(-manifest.packed.rows // max(1, manifest.block_tokens // packing.sequence_length))
    return max(1, -(-(manifest.tokens - 1) // manifest.block_tokens))


def _content_hash(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
