"""From files of text to a prepared folder: read, select, split, tokenise, write.

Document number n of the input is the same document on every run, with any number of workers; each set's writer takes
the documents in ascending order. That, and a recipe that names everything the bytes depend on, is why a run that was
killed ends, when it is run again, with the same bytes as one that was not.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

from megatrain.base.errors import ConfigError
from megatrain.data.folder.hashed_files import make_folder, sole_writer
from megatrain.data.folder.manifest import (
    MOST_BLOCK_TOKENS,
    SOURCES,
    TOKENIZER,
    Manifest,
    Packing,
    Part,
    Recipe,
    SourceList,
)
from megatrain.data.preparation.encode import Content, encode_documents
from megatrain.data.preparation.progress import ProgressLine
from megatrain.data.preparation.selection import Selection, SelectionPolicy, forget, select
from megatrain.data.preparation.writer import SetWriter
from megatrain.data.text.documents import Document, describe, read_documents
from megatrain.data.text.inputs import Input, find_inputs, records
from megatrain.data.text.rows import MAXIMUM_BYTES
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.version import __version__

BLOCK_TOKENS = 1 << 18
SHARD_BYTES = 1 << 28
WINDOW_TOKENS = 1 << 22  # of documents that best fit packs together: a thousand rows of 4,096
_WINDOW_ROWS = 256  # at least
_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 1 << 20
_SELECTION_DOCUMENTS = 4096


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
    skip_null: bool = False  # leave out, and count, rows whose text is null or not there
    maximum_bytes: int = MAXIMUM_BYTES  # of a line, or of a file that is one document
    holdout: float = 0.0  # share of the documents that `holdout_out` gets, chosen by a hash of their text
    holdout_out: Path | None = None
    block_tokens: int = BLOCK_TOKENS
    shard_bytes: int = SHARD_BYTES  # about; a shard is a whole number of blocks
    pack: Literal["concat", "best_fit"] = "concat"
    sequence_length: int | None = None  # of the rows that best_fit packs
    selection: SelectionPolicy = field(default_factory=SelectionPolicy)
    workers: int = 1
    gigatoken: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"--holdout: {self.holdout}: must be a fraction from 0 to under 1")
        if (self.holdout > 0) != (self.holdout_out is not None):
            raise ConfigError("--holdout and --holdout-out go together: the share to hold out, and the folder for it")
        if self.holdout_out is not None and self.holdout_out.resolve() == self.out.resolve():
            raise ConfigError(f"--holdout-out: {self.holdout_out}: must be another folder than --out")
        if not 1 <= self.block_tokens <= MOST_BLOCK_TOKENS:
            raise ConfigError(f"--block-tokens: {self.block_tokens}: must be from 1 to {MOST_BLOCK_TOKENS:,}")
        self._check_packing()
        if not 1 <= self.maximum_bytes <= 1 << 40:
            raise ConfigError(f"--max-document-mebibytes: {self.maximum_bytes >> 20}: must be from 1 to {1 << 20:,}")
        if not 1 <= self.shard_bytes <= 1 << 40:
            raise ConfigError(f"--shard-mebibytes: {self.shard_bytes >> 20}: must be from 1 to {1 << 20:,}")
        if self.workers < 1:
            raise ConfigError(f"--workers: {self.workers}: must be at least 1")
        for folder in self.folders.values():
            for given in map(Path, self.inputs):
                if given.is_dir() and folder.resolve().is_relative_to(given.resolve()):
                    raise ConfigError(f"{folder}: is inside the input {given}, so it would be read as text")

    def _check_packing(self) -> None:
        if self.pack not in ("concat", "best_fit"):
            raise ConfigError(f"--pack: {self.pack}: must be concat or best_fit")
        if (self.pack == "best_fit") != (self.sequence_length is not None):
            raise ConfigError("--pack best_fit and --sequence-length go together: concat is cut when it is read")
        if self.sequence_length is not None and (self.sequence_length < 1 or self.block_tokens % self.sequence_length):
            raise ConfigError(
                f"--sequence-length: {self.sequence_length}: must divide --block-tokens {self.block_tokens}"
            )

    def documents(self, inputs: Sequence[Input], skipped: Counter[str]) -> Iterator[Document]:
        """Every document of the inputs; rows without a text are counted in `skipped`, where that is asked for."""
        return read_documents(
            inputs, self.text_field, maximum_bytes=self.maximum_bytes, skipped=skipped if self.skip_null else None
        )

    @property
    def packing(self) -> Packing | None:
        if self.sequence_length is None:
            return None
        return Packing(self.sequence_length, max(WINDOW_TOKENS, _WINDOW_ROWS * self.sequence_length))

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
    where: str  # for messages


def prepare(options: PrepareOptions, progress: TextIO | None = None) -> list[Manifest]:
    """Write the folder, or both with a hold-out; the manifests, the training set's first.

    The blocks of a set hold one stream of tokens, each document followed by EOS; the last block holds what is left, and
    of it, whole rows are used. Or they hold rows that best fit packed.

    Raises:
        DataError: an input is missing, damaged or not text, or a folder holds something else.
    """
    found = find_inputs(options.inputs)
    inputs = found.inputs
    read_as = describe(found)  # first: what cannot be read is refused before hashing all the rest
    tokenizer = Tokenizer.load(options.tokenizer)
    listing, sources = _sources(inputs)
    with ExitStack() as locks:
        for folder in options.folders.values():
            make_folder(folder)
            locks.enter_context(sole_writer(folder))
        files = {TOKENIZER: tokenizer.content, SOURCES: listing}
        writers = {
            part: SetWriter(folder, _recipe(options, part, tokenizer, sources), files)
            for part, folder in options.folders.items()
        }
        left_out: dict[str, int] = {}
        if not all(writer.finished for writer in writers.values()):
            if progress is not None:
                print(*read_as, sep="\n", file=progress, flush=True)
            selection = _select(options, inputs, tokenizer, sources, progress)
            line = ProgressLine("prepare", sources.bytes, progress)
            skipped = _write_documents(options, inputs, tokenizer, writers, selection, line)
            left_out = dict(skipped) | (selection.left_out if selection else {})
            for writer in writers.values():
                if not writer.has_documents:
                    for other in writers.values():
                        other.discard()
                    raise writer.nothing(left_out)
        manifests = [writer.finish(left_out) for writer in writers.values()]
        forget(options.out)
        return manifests


def _select(
    options: PrepareOptions, inputs: list[Input], tokenizer: Tokenizer, sources: SourceList, progress: TextIO | None
) -> Selection | None:
    if not options.selection.is_active:
        return None

    def batches() -> Iterator[tuple[int, list[str]]]:
        with ProgressLine("select", sources.bytes, progress) as line:
            first, texts = 0, list[str]()
            for document in options.documents(inputs, Counter()):
                texts.append(_text(document.content, tokenizer))
                if len(texts) == _SELECTION_DOCUMENTS:
                    line.update(documents=len(texts), bytes_read=document.bytes_read)
                    yield first, texts
                    first, texts = first + len(texts), []
            if texts:
                line.update(documents=len(texts), bytes_read=sources.bytes)
                yield first, texts

    name = f"{sources.sha256} {options.text_field}"
    return select(batches(), options.selection, options.out, name, options.workers)


def _write_documents(
    options: PrepareOptions,
    inputs: list[Input],
    tokenizer: Tokenizer,
    writers: dict[Part, SetWriter],
    selection: Selection | None,
    progress: ProgressLine,
) -> Counter[str]:
    """Tokenise and write; the rows that were dropped for want of a text, counted."""
    skipped: Counter[str] = Counter()

    def wanted() -> Iterator[tuple[_Place, Content]]:
        """The documents that stay, and are not on disk yet."""
        for number, document in enumerate(options.documents(inputs, skipped)):
            if selection and not selection.keeps(number):
                continue
            part = part_of(_text(document.content, tokenizer), options.holdout) if options.holdout else "train"
            if writers[part].needs(number):
                yield _Place(number, part, document.bytes_read, document.where), document.content

    batches = _batches(wanted())
    with progress:
        encoding = encode_documents(
            batches,
            tokenizer,
            options.workers,
            gigatoken=options.gigatoken,
            where=lambda places, number: places[number].where,
        )
        for places, encoded in encoding:
            for place, tokens in zip(places, encoded.documents(), strict=True):
                writers[place.part].add(place.number, tokens)
            progress.update(documents=len(places), tokens=len(encoded.tokens), bytes_read=places[-1].bytes_read)
    return skipped


def part_of(text: str, holdout: float) -> Part:
    """The set a text belongs to: decided by its content alone, so that no copy of it can be in the other set."""
    if holdout == 0:
        return "train"
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"holdout").digest()
    return "holdout" if int.from_bytes(digest, "little") < holdout * 2**64 else "train"


def _text(content: Content, tokenizer: Tokenizer) -> str:
    return content if isinstance(content, str) else tokenizer.decode(content, skip_special_tokens=True)


def _batches(documents: Iterable[tuple[_Place, Content]]) -> Iterator[tuple[list[_Place], list[Content]]]:
    places: list[_Place] = []
    contents: list[Content] = []
    size = 0
    for place, content in documents:
        places.append(place)
        contents.append(content)
        size += len(content)
        if len(contents) == _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
            yield places, contents
            places, contents, size = [], [], 0
    if contents:
        yield places, contents


def _sources(inputs: Sequence[Input]) -> tuple[bytes, SourceList]:
    """The content of sources.jsonl, and what the recipe says of it."""
    found = [*records(inputs)]
    content = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in found)
    # a name that is not UTF-8 stands there as JSON escapes it
    encoded = content.encode(errors="backslashreplace")
    total = sum(record.bytes for record in found)
    return encoded, SourceList(len(found), total, hashlib.sha256(encoded).hexdigest())


def _recipe(options: PrepareOptions, part: Part, tokenizer: Tokenizer, sources: SourceList) -> Recipe:
    narrow = tokenizer.vocab_size <= 1 << 16
    libraries = ["tokenizers", "gigatoken"] if options.gigatoken else ["tokenizers"]
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
        packing=options.packing,
        selection=options.selection.recipe() | ({"skip_null": True} if options.skip_null else {}),
        versions={"megatrain": __version__} | {name: version(name) for name in libraries},
    )
