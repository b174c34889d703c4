"""Writing one prepared folder: documents in, tar shards out, restartable after every shard.

Each finished shard leaves a receipt, which says at which token of which document the next shard begins. Whoever opens
the folder again goes on from the last receipt; the bytes are the same as without the interruption. At the end the
receipts become the index, the manifest is written, and they are deleted.
"""

import io
import json
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatrain.data.files import TEMPORARY, FileRecord, HashingWriter, atomic_file, write_bytes
from megatrain.data.index import BlockRecord, Index, block_hash
from megatrain.data.manifest import INDEX, MANIFEST, TOKENIZER, Manifest, Recipe, read_manifest, recipe_from_json
from megatrain.errors import DataError

TOKENS_MEMBER = ".tokens"
ENDS_MEMBER = ".ends"
_RECIPE = ".recipe.json"
_OWN = ("shard-", "recipe.json", INDEX, MANIFEST, TOKENIZER)  # how the names of a folder's files begin
_END_DTYPE = np.dtype("<u4")


@dataclass(frozen=True, slots=True)
class Resume:
    """Where the next shard begins."""

    document: int = 0  # number among all documents of the input
    token: int = 0  # within that document
    documents: int = 0  # documents of this set that came before it


@dataclass(frozen=True, slots=True)
class Receipt:
    shard: FileRecord
    blocks: list[BlockRecord]
    resume: Resume


class SetWriter:
    """Writes one prepared folder.

    Args:
        folder: exists. What a run of the same recipe left there is continued.
        recipe: what decides the bytes.
        tokenizer: the content of tokenizer.json, kept beside the data.

    Raises:
        DataError: the folder holds data of another recipe. Nothing of it is touched.
    """

    def __init__(self, folder: Path, recipe: Recipe, tokenizer: bytes) -> None:
        self.folder = folder
        self.recipe = recipe
        self.finished = self._open(tokenizer)
        self._receipts = [] if self.finished else _read_receipts(folder)
        self._resume = self._receipts[-1].resume if self._receipts else Resume()
        self._documents = self._resume.documents
        self._dtype = np.dtype(recipe.dtype).newbyteorder("<")
        self._buffer = np.empty(recipe.block_tokens + 1, dtype=self._dtype)
        self._filled = 0
        self._ends: list[int] = []
        self._blocks: list[tuple[bytes, bytes]] = []  # of the shard that is being filled

    def needs(self, document: int) -> bool:
        """Whether document number `document` is not in the folder yet."""
        return not self.finished and document >= self._resume.document

    def add(self, document: int, tokens: NDArray[np.unsignedinteger]) -> None:
        """Append one document; documents come in ascending order.

        Args:
            document: its number among all documents of the input.
            tokens: its ids, EOS the last, any unsigned dtype [n].
        """
        start = self._resume.token if document == self._resume.document else 0
        while start < len(tokens):
            taken = min(len(tokens) - start, len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + taken] = tokens[start : start + taken]
            self._filled += taken
            start += taken
            if start == len(tokens):
                self._ends.append(self._filled)
            if self._filled == len(self._buffer):
                self._cut_block(Resume(document, start - 1, self._documents))
        self._documents += 1

    def finish(self) -> Manifest:
        """Write what is left, the index and, last, the manifest.

        Raises:
            DataError: there was no document.
        """
        if self.finished:
            return self.finished
        lookahead = 1 if self._receipts or self._blocks else 0  # a token that the block before holds too
        if self._filled > lookahead:
            self._blocks.append(self._payloads())
        finished = list(self._receipts)
        if self._blocks:  # without a receipt: nothing resumes after the last shard
            finished.append(self._write_shard(Resume()))
        if not finished:
            raise DataError(f"{self.folder}: no document fell to the {self.recipe.part} set. {self._advice()}")
        index = Index.of([receipt.blocks for receipt in finished])
        index_record = write_bytes(self.folder / INDEX, index.dumps())
        manifest = Manifest(
            recipe=self.recipe,
            tokens=int(index.tokens.sum(dtype=np.int64)) - (len(index) - 1),
            documents=self._documents,
            blocks=len(index),
            shards=tuple(receipt.shard for receipt in finished),
            index_sha256=index_record.sha256,
        )
        write_bytes(self.folder / MANIFEST, manifest.dumps().encode())
        self._clean(finished=True)
        self.finished = manifest
        return manifest

    def _open(self, tokenizer: bytes) -> Manifest | None:
        """Claim the folder for this recipe; the manifest, if it is complete already."""
        if (self.folder / MANIFEST).exists():
            manifest = read_manifest(self.folder)
            self._require_same(manifest.recipe, "holds prepared data")
            self._clean(finished=True)
            return manifest
        if list(self.folder.glob("shard-*.tar")):
            if not (self.folder / _RECIPE).exists():
                raise DataError(f"{self.folder}: holds shards of something else. Choose another folder.")
            self._require_same(_read_recipe(self.folder / _RECIPE), "holds unfinished data")
        self._clean(finished=False)
        write_bytes(self.folder / _RECIPE, json.dumps(asdict(self.recipe)).encode())
        write_bytes(self.folder / TOKENIZER, tokenizer)
        return None

    def _require_same(self, found: Recipe, what: str) -> None:
        if differing := self.recipe.differences(found):
            raise DataError(
                f"{self.folder}: {what} made with other {', '.join(differing)}. "
                "Choose another folder, or delete this one if its data is not needed."
            )

    def _clean(self, *, finished: bool) -> None:
        """Remove what a killed run left half-written and, when all is done, the receipts."""
        for file in self.folder.iterdir():
            hidden = file.name.startswith(".") and file.name.lstrip(".").startswith(_OWN)
            if hidden and (finished or file.name.endswith(TEMPORARY)):
                file.unlink()

    def _advice(self) -> str:
        if self.recipe.part == "holdout":
            return f"--holdout {self.recipe.holdout:g} of so few documents is none: raise it."
        return "The inputs hold no text." if self.recipe.holdout == 0 else "Lower --holdout, or give more text."

    def _cut_block(self, resume: Resume) -> None:
        self._blocks.append(self._payloads())
        self._buffer[0] = self._buffer[-1]
        self._ends = [1] if self._ends and self._ends[-1] == len(self._buffer) else []
        self._filled = 1
        if len(self._blocks) == self.recipe.shard_blocks:
            receipt = self._write_shard(resume)
            write_bytes(self.folder / _receipt_name(len(self._receipts)), json.dumps(asdict(receipt)).encode())
            self._receipts.append(receipt)
            self._blocks = []

    def _payloads(self) -> tuple[bytes, bytes]:
        return self._buffer[: self._filled].tobytes(), np.array(self._ends, dtype=_END_DTYPE).tobytes()

    def _write_shard(self, resume: Resume) -> Receipt:
        number = len(self._receipts)
        name = f"shard-{number:05d}.tar"
        with atomic_file(self.folder / name) as file:
            records = _write_tar(file, number * self.recipe.shard_blocks, self._blocks, self._dtype.itemsize)
        return Receipt(file.record(name), records, resume)


def member_name(block: int, suffix: str) -> str:
    return f"{block:08d}{suffix}"


def _write_tar(
    file: HashingWriter, first_block: int, blocks: list[tuple[bytes, bytes]], token_bytes: int
) -> list[BlockRecord]:
    records = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
        for number, (tokens, ends) in enumerate(blocks, start=first_block):
            offset = _add_member(tar, file, member_name(number, TOKENS_MEMBER), tokens)
            ends_offset = _add_member(tar, file, member_name(number, ENDS_MEMBER), ends)
            counts = len(tokens) // token_bytes, len(ends) // _END_DTYPE.itemsize
            records.append(BlockRecord(offset, counts[0], ends_offset, counts[1], block_hash(tokens, ends)))
    return records


def _add_member(tar: tarfile.TarFile, file: HashingWriter, name: str, payload: bytes) -> int:
    """Append a member whose header says nothing of when, where or by whom; the offset of its payload."""
    header = tarfile.TarInfo(name)
    header.size = len(payload)
    header.mode = 0o644
    offset = file.tell() + tarfile.BLOCKSIZE
    tar.addfile(header, io.BytesIO(payload))
    return offset


def _receipt_name(shard: int) -> str:
    return f".shard-{shard:05d}.receipt.json"


def _read_receipts(folder: Path) -> list[Receipt]:
    """The receipts of the first shards, up to one whose shard is gone or has another size: it is written again."""
    receipts: list[Receipt] = []
    while (file := folder / _receipt_name(len(receipts))).exists():
        value = json.loads(file.read_text())
        blocks = [BlockRecord(*block) for block in value["blocks"]]
        receipt = Receipt(FileRecord(**value["shard"]), blocks, Resume(**value["resume"]))
        shard = folder / receipt.shard.name
        if not shard.is_file() or shard.stat().st_size != receipt.shard.bytes:
            break
        receipts.append(receipt)
    return receipts


def _read_recipe(file: Path) -> Recipe:
    try:
        return recipe_from_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{file}: was written by another version. Delete its folder if its data is not needed."
        ) from None
