"""Writing one prepared folder: documents in, tar shards out, restartable after every shard.

Each finished shard leaves a receipt, which says at which token of which document the next shard begins. Whoever opens
the folder again resumes from the last receipt; the bytes are the same as without the interruption. At the end the
receipts become the index, the manifest is written, and they are deleted.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megatrain.base.errors import DataError
from megatrain.base.files import read_model
from megatrain.data.folder.hashed_files import TEMPORARY, FileRecord, HashingWriter, atomic_file, write_bytes
from megatrain.data.folder.index import ENDS_MEMBER, TOKENS_MEMBER, BlockRecord, Index, block_hash, member_name
from megatrain.data.folder.manifest import (
    INDEX,
    MANIFEST,
    SOURCES,
    TOKENIZER,
    Manifest,
    Recipe,
    read_manifest,
    shard_name,
)
from megatrain.data.preparation.blocks import END_DTYPE, Block, Resume, Tokens, block_maker

_RECIPE = ".recipe.json"
_RECEIPT_BYTES = 1 << 30
_OWN = ("shard-", "recipe.json", INDEX, MANIFEST, TOKENIZER, SOURCES)  # how the names of a folder's files begin


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
        files: the content of tokenizer.json and sources.jsonl, kept beside the data.

    Raises:
        DataError: the folder holds data of another recipe. Nothing of it is touched.
    """

    def __init__(self, folder: Path, recipe: Recipe, files: dict[str, bytes]) -> None:
        self.folder = folder
        self.recipe = recipe
        self.finished = self._open(files)
        self._receipts = [] if self.finished else _read_receipts(folder)
        self._resume = self._receipts[-1].resume if self._receipts else Resume()
        self._maker = block_maker(recipe, self._resume)
        self._has_added = False
        self._blocks: list[Block] = []  # of the shard that is being filled

    def needs(self, document: int) -> bool:
        """Whether document number `document` is not in the folder yet."""
        return not self.finished and document >= self._resume.document

    def add(self, document: int, tokens: Tokens) -> None:
        """Append one document; documents come in ascending order.

        Args:
            document: its number among all documents of the input.
            tokens: its ids, EOS the last, any unsigned dtype [n].
        """
        self._has_added = True
        self._take(self._maker.add(document, tokens))

    def finish(self, left_out: dict[str, int]) -> Manifest:
        """Write what is left, the index and, last, the manifest.

        Args:
            left_out: documents of all inputs that were dropped, by reason.
        """
        if self.finished:
            return self.finished
        self._take(self._maker.finish())
        finished = list(self._receipts)
        if self._blocks:  # without a receipt: nothing resumes after the last shard
            finished.append(self._write_shard(Resume()))
        index = Index.of([receipt.blocks for receipt in finished])
        index_record = write_bytes(self.folder / INDEX, index.dumps())
        manifest = Manifest(
            recipe=self.recipe,
            tokens=self._maker.tokens,
            documents=self._maker.documents,
            blocks=len(index),
            packed=self._maker.packed,
            left_out=left_out,
            shards=tuple(receipt.shard for receipt in finished),
            index_sha256=index_record.sha256,
        )
        write_bytes(self.folder / MANIFEST, manifest.dumps().encode())
        self._clean(finished=True)
        self.finished = manifest
        return manifest

    @property
    def has_documents(self) -> bool:
        return self.finished is not None or self._has_added or bool(self._receipts)

    def nothing(self, left_out: dict[str, int]) -> DataError:
        """Why a set without a document is none, and what to do."""
        if self.recipe.part == "holdout":
            advice = f"--holdout {self.recipe.holdout:g} of so few documents is none: raise it."
        else:
            advice = "The inputs hold no text." if self.recipe.holdout == 0 else "Lower --holdout, or give more text."
        omitted = f" Left out: {', '.join(f'{count:,} {why}' for why, count in left_out.items())}." if left_out else ""
        return DataError(f"{self.folder}: no document fell to the {self.recipe.part} set. {advice}{omitted}")

    def discard(self) -> None:
        """Remove the unfinished data of this recipe, which nothing could ever resume from; finished data stays."""
        if not self.finished:
            for file in self.folder.iterdir():
                if file.name.lstrip(".").startswith(_OWN):
                    file.unlink()

    def _open(self, files: dict[str, bytes]) -> Manifest | None:
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
        for name, content in files.items():
            write_bytes(self.folder / name, content)
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

    def _take(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            self._blocks.append(block)
            if len(self._blocks) == self.recipe.shard_blocks and block.resume:
                receipt = self._write_shard(block.resume)
                write_bytes(self.folder / _receipt_name(len(self._receipts)), json.dumps(asdict(receipt)).encode())
                self._receipts.append(receipt)

    def _write_shard(self, resume: Resume) -> Receipt:
        number = len(self._receipts)
        name = shard_name(number)
        with atomic_file(self.folder / name) as file:
            token_bytes = np.dtype(self.recipe.dtype).itemsize
            records = _write_tar(file, number * self.recipe.shard_blocks, self._blocks, token_bytes)
        self._blocks = []
        return Receipt(file.record(name), records, resume)


def _write_tar(file: HashingWriter, first_block: int, blocks: list[Block], token_bytes: int) -> list[BlockRecord]:
    records = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
        for number, block in enumerate(blocks, start=first_block):
            offset = _add_member(tar, file, member_name(number, TOKENS_MEMBER), block.tokens)
            ends_offset = _add_member(tar, file, member_name(number, ENDS_MEMBER), block.ends)
            counts = len(block.tokens) // token_bytes, len(block.ends) // END_DTYPE.itemsize
            digest = block_hash(block.tokens, block.ends)
            records.append(BlockRecord(offset, counts[0], ends_offset, counts[1], digest, block.targets))
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
        receipt = read_model(file, Receipt, error=DataError, limit=_RECEIPT_BYTES)
        shard = folder / shard_name(len(receipts))
        if not shard.is_file() or shard.stat().st_size != receipt.shard.bytes:
            break
        receipts.append(receipt)
    return receipts


def _read_recipe(file: Path) -> Recipe:
    try:
        return read_model(file, Recipe, error=DataError)
    except DataError as error:
        raise DataError(f"{error}. Was it written by another version? Delete its folder if it is not needed.") from None
