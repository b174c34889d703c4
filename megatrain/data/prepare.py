"""From files of text to a prepared folder: read, split, tokenise, write.

Document number n of the input is the same document on every run, with any number of workers; each set's writer takes
the documents in ascending order. That, and a recipe that names everything the bytes depend on, is why a run that was
killed ends, when it is run again, with the same bytes as one that was not.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, TextIO

import megatrain
from megatrain.data.encode import encode_documents
from megatrain.data.files import FileRecord, make_folder, sha256_file, sole_writer
from megatrain.data.manifest import Manifest, Part, Recipe
from megatrain.data.progress import PrepareProgress
from megatrain.data.text import Document, find_inputs, read_documents
from megatrain.data.tokenizer import Tokenizer
from megatrain.data.writer import SetWriter
from megatrain.errors import ConfigError

BLOCK_TOKENS = 1 << 18
MOST_BLOCK_TOKENS = 1 << 30  # counts within a block are 32-bit numbers
SHARD_BYTES = 1 << 28
_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What `megatrain data prepare` is asked for.

    Raises:
        ConfigError: an option is out of range, or contradicts another.
    """

    inputs: tuple[str, ...]
    out: Path
    tokenizer: Path
    text_field: str = "text"
    holdout: float = 0.0  # share of the documents that `holdout_out` gets, chosen by a hash of their text
    holdout_out: Path | None = None
    block_tokens: int = BLOCK_TOKENS
    shard_bytes: int = SHARD_BYTES  # about; a shard is a whole number of blocks
    workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"--holdout: {self.holdout}: must be a fraction from 0 to under 1")
        if (self.holdout > 0) != (self.holdout_out is not None):
            raise ConfigError("--holdout and --holdout-out go together: the share to hold out, and the folder for it")
        if self.holdout_out is not None and self.holdout_out.resolve() == self.out.resolve():
            raise ConfigError(f"--holdout-out: {self.holdout_out}: must be another folder than --out")
        if not 1 <= self.block_tokens <= MOST_BLOCK_TOKENS:
            raise ConfigError(f"--block-tokens: {self.block_tokens}: must be from 1 to {MOST_BLOCK_TOKENS:,}")
        if self.workers < 1:
            raise ConfigError(f"--workers: {self.workers}: must be at least 1")
        for folder in self.folders.values():
            for given in map(Path, self.inputs):
                if given.is_dir() and folder.resolve().is_relative_to(given.resolve()):
                    raise ConfigError(f"{folder}: is inside the input {given}, so it would be read as text")

    @property
    def folders(self) -> dict[Part, Path]:
        """The folder of each set that is written."""
        folders: dict[Part, Path] = {"train": self.out}
        if self.holdout_out is not None:
            folders["holdout"] = self.holdout_out
        return folders


class _Place(NamedTuple):
    """Which document, of which set."""

    number: int
    part: Part
    bytes_read: int


def prepare(options: PrepareOptions, progress: TextIO | None = sys.stderr) -> list[Manifest]:
    """Write the folder, or both with a hold-out; the manifests, the training set's first.

    The blocks of a set hold one stream of tokens, each document followed by EOS. The last block holds what is left; of
    it, whole rows are used.

    Raises:
        DataError: an input is missing, damaged or not text, or a folder holds something else.
    """
    files = find_inputs(options.inputs)
    tokenizer = Tokenizer.load(options.tokenizer)
    sources = tuple(FileRecord(str(file), file.stat().st_size, sha256_file(file)) for file in files)
    with ExitStack() as locks:
        for folder in options.folders.values():
            make_folder(folder)
            locks.enter_context(sole_writer(folder))
        writers = {
            part: SetWriter(folder, _recipe(options, part, tokenizer, sources), tokenizer.content)
            for part, folder in options.folders.items()
        }
        with PrepareProgress(sum(source.bytes for source in sources), progress) as line:
            if not all(writer.finished for writer in writers.values()):
                _write_documents(options, files, writers, line)
        return [writer.finish() for writer in writers.values()]


def _write_documents(
    options: PrepareOptions, files: list[Path], writers: dict[Part, SetWriter], line: PrepareProgress
) -> None:
    wanted = _wanted(read_documents(files, options.text_field), options.holdout, writers)
    for places, documents in encode_documents(_batches(wanted), options.tokenizer, options.workers):
        for place, tokens in zip(places, documents, strict=True):
            writers[place.part].add(place.number, tokens)
        tokens_read = sum(map(len, documents))
        line.update(documents=len(documents), tokens=tokens_read, bytes_read=places[-1].bytes_read)


def part_of(text: str, holdout: float) -> Part:
    """The set a text belongs to: decided by its content alone, so that no copy of it can be in the other set."""
    if holdout == 0:
        return "train"
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"holdout").digest()
    return "holdout" if int.from_bytes(digest, "little") < holdout * 2**64 else "train"


def _wanted(
    documents: Iterable[Document], holdout: float, writers: dict[Part, SetWriter]
) -> Iterator[tuple[_Place, str]]:
    """The documents that are not on disk yet."""
    for number, document in enumerate(documents):
        part = part_of(document.text, holdout)
        if writers[part].needs(number):
            yield _Place(number, part, document.bytes_read), document.text


def _batches(documents: Iterable[tuple[_Place, str]]) -> Iterator[tuple[list[_Place], list[str]]]:
    places: list[_Place] = []
    texts: list[str] = []
    characters = 0
    for place, text in documents:
        places.append(place)
        texts.append(text)
        characters += len(text)
        if len(texts) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield places, texts
            places, texts, characters = [], [], 0
    if texts:
        yield places, texts


def _recipe(options: PrepareOptions, part: Part, tokenizer: Tokenizer, sources: tuple[FileRecord, ...]) -> Recipe:
    narrow = tokenizer.vocab_size <= 1 << 16
    return Recipe(
        part=part,
        holdout=options.holdout,
        text_field=options.text_field,
        sources=sources,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        dtype="uint16" if narrow else "uint32",
        block_tokens=options.block_tokens,
        shard_blocks=max(1, options.shard_bytes // (options.block_tokens * (2 if narrow else 4))),
        versions={"megatrain": megatrain.__version__, "tokenizers": version("tokenizers")},
    )
