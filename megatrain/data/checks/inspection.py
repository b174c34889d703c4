"""What a prepared folder holds, for a person to look at."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import DataError, PreflightError
from megatrain.base.files import open_regular, parse_json, parse_model
from megatrain.data.folder.hashed_files import FileRecord
from megatrain.data.folder.locations import join, read_file
from megatrain.data.folder.manifest import SOURCES, TOKENIZER, Manifest
from megatrain.data.loading.shards import PreparedData

_SAMPLE_TOKENS = 100
_BAR_WIDTH = 40
_SHOWN_SOURCES = 10
_SOURCE_BYTES = 1 << 16  # of a line of sources.jsonl
_TOKENIZER_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many documents (of packed rows: pieces) have how many tokens, EOS included. One entry a length, ascending."""

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]

    @property
    def mean(self) -> float:
        return float(self.tokens @ self.documents / self.documents.sum())

    @property
    def median(self) -> int:
        """The lower one, of an even number."""
        before = np.cumsum(self.documents)
        return int(self.tokens[np.searchsorted(before, (before[-1] + 1) // 2)])

    @property
    def maximum(self) -> int:
        return int(self.tokens[-1])

    def histogram(self) -> list[tuple[int, int]]:
        """(lower bound, documents): lengths from it up to twice it. Bounds are powers of two, without gaps."""
        exponents = np.frexp(self.tokens)[1] - 1  # floor of the binary logarithm, exactly
        counts = np.bincount(exponents, weights=self.documents).astype(np.int64)
        return [(1 << exponent, int(counts[exponent])) for exponent in range(int(exponents.min()), len(counts))]


@dataclass(frozen=True, slots=True)
class Inspection:
    path: Path
    manifest: Manifest
    lengths: Lengths
    sample: str  # the first tokens, decoded

    def as_json(self) -> dict[str, Any]:
        """Everything but the list of sources, which may have millions: `sources.jsonl` in the folder is that."""
        manifest, recipe = self.manifest, self.manifest.recipe
        return {
            "path": str(self.path),
            "part": recipe.part,
            "tokens": manifest.tokens,
            "documents": manifest.documents,
            "blocks": manifest.blocks,
            "block_tokens": manifest.block_tokens,
            "shards": len(manifest.shards),
            "bytes": sum(shard.bytes for shard in manifest.shards),
            "vocab_size": manifest.vocab_size,
            "eos_id": manifest.eos_id,
            "dtype": recipe.dtype,
            "tokenizer_sha256": manifest.tokenizer_sha256,
            "manifest_hash": manifest.manifest_hash,
            "sources": asdict(recipe.sources),
            "selection": recipe.selection,
            "left_out": manifest.left_out,
            "packing": asdict(recipe.packing) | asdict(manifest.packed) if recipe.packing and manifest.packed else None,
            "document_tokens": {
                "mean": self.lengths.mean,
                "median": self.lengths.median,
                "maximum": self.lengths.maximum,
            },
            "histogram": [{"from": lower, "documents": count} for lower, count in self.lengths.histogram()],
            "sample": self.sample,
        }

    def as_text(self) -> str:
        facts, manifest = self.as_json(), self.manifest
        length = facts["document_tokens"]
        return "\n".join(
            [
                f"{self.path}: {manifest.tokens:,} tokens in {manifest.documents:,} documents ({facts['part']} set)",
                f"{facts['shards']} shards, {_size(facts['bytes'])}; {facts['blocks']} blocks of "
                f"{facts['block_tokens']:,} tokens; vocabulary {facts['vocab_size']:,} ({facts['dtype']})",
                *_source_lines(self.path, manifest),
                *([f"dropped: {_counts(manifest.left_out)}"] if manifest.left_out else []),
                *packing_lines(manifest),
                f"tokens per {'piece' if manifest.packed else 'document'}: mean {length['mean']:,.0f}, "
                f"median {length['median']:,}, maximum {length['maximum']:,}",
                *_bars(self.lengths.histogram()),
                "it begins:",
                *(f"  {line}" for line in self.sample.splitlines()),
            ]
        )

    def draw(self, file: Path) -> None:
        """The histogram as a picture; the suffix decides its kind.

        Raises:
            PreflightError: matplotlib is not installed.
            DataError: the file cannot be written.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise PreflightError("--png: needs matplotlib: pip install 'megatrain[plot]'") from None
        bounds, counts = zip(*self.lengths.histogram(), strict=True)
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.bar(range(len(bounds)), counts)
        axes.set_xticks(range(len(bounds)), [f"{bound:,}" for bound in bounds], rotation=45)
        axes.set_xlabel(f"tokens per {'piece' if self.manifest.packed else 'document'}, from here to twice as many")
        axes.set_ylabel("number")
        axes.set_title(f"{self.path}: {self.manifest.tokens:,} tokens in {self.manifest.documents:,} documents")
        try:
            figure.savefig(file)
        except (OSError, ValueError) as error:  # ValueError: a suffix that it does not know
            raise DataError(f"{file}: cannot be written: {error}") from None


def inspect_data(path: str | Path) -> Inspection:
    """Read a prepared folder's document ends and its first tokens.

    Raises:
        DataError: the folder is not whole.
    """
    data = PreparedData(path)
    try:
        tokens = data.block_tokens(0)[:_SAMPLE_TOKENS]
        sample = tokenizer_of(data).decode(tokens.tolist(), skip_special_tokens=False)
        return Inspection(Path(data.path), data.manifest, _lengths(data), sample)
    finally:
        data.close()


def tokenizer_of(data: PreparedData) -> Any:
    """The tokenizer that a prepared folder carries, of the `tokenizers` library: what its ids mean.

    Raises:
        DataError: it is not the one that the manifest names.
    """
    from tokenizers import Tokenizer

    file = join(data.path, TOKENIZER)
    try:
        content = read_file(data.path, TOKENIZER, limit=_TOKENIZER_BYTES)
        if hashlib.sha256(content).hexdigest() != data.manifest.tokenizer_sha256:
            raise DataError(f"{file}: is not the tokenizer that the data was made with")
        return Tokenizer.from_str(content.decode())
    except FileNotFoundError:
        raise DataError(f"{file}: is missing") from None
    except DataError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{file}: is not a tokenizer.json of the `tokenizers` library: {error}") from None


def packing_lines(manifest: Manifest) -> list[str]:
    """What best fit saved, in two lines; nothing where documents were concatenated."""
    packed, packing = manifest.packed, manifest.recipe.packing
    if packed is None or packing is None:
        return []
    slots = packed.rows * (packing.sequence_length + 1)
    alone = packed.pieces * (packing.sequence_length + 1)  # if each piece had a row of its own
    held = slots - packed.padding
    return [
        f"packed by best fit: {packed.rows:,} rows of {packing.sequence_length:,}, {packed.padding / slots:.3%} padding"
        f" (a row for each piece: {1 - held / alone:.1%})",
        f"cut documents: {packed.documents_cut:,}, all longer than a row (concatenation: "
        f"{packed.documents_cut_by_concat:,} of {manifest.documents:,})",
    ]


def _lengths(data: PreparedData) -> Lengths:
    found: Counter[int] = Counter()
    packing = data.manifest.recipe.packing
    row_tokens = packing.sequence_length + 1 if packing else 0
    before = 0  # where the last document ended, from the start of the set
    for block in range(len(data.index)):
        ends = data.block_ends(block)
        if packing:
            rows = (ends - 1) // row_tokens
            starts = np.concatenate([[0], ends[:-1]])
            lengths = ends - np.maximum(starts, rows * row_tokens)
        else:
            ends = ends + block * data.manifest.block_tokens
            ends = ends[ends > before]  # the token that two blocks share may end a document: it stands in both
            lengths = np.diff(ends, prepend=before)
            before = int(ends[-1]) if len(ends) else before
        for length, count in zip(*np.unique(lengths, return_counts=True), strict=True):
            found[int(length)] += int(count)
    ordered = sorted(found.items())
    return Lengths(np.array([length for length, _ in ordered]), np.array([count for _, count in ordered]))


def _source_lines(folder: Path, manifest: Manifest) -> Iterator[str]:
    sources = manifest.recipe.sources
    yield f"{sources.count:,} sources, {_size(sources.bytes)}:"
    with open_regular(folder / SOURCES, DataError) as lines:
        for number in range(min(sources.count, _SHOWN_SOURCES)):
            where = f"{folder / SOURCES}:{number + 1}"
            record = parse_model(
                FileRecord, parse_json(lines.readline(_SOURCE_BYTES), where, DataError), where, DataError
            )
            yield f"  {_printable(record.name)}" + (f" ({_size(record.bytes)})" if record.bytes else "")
    if sources.count > _SHOWN_SOURCES:
        yield f"  and {sources.count - _SHOWN_SOURCES:,} more in {folder / SOURCES}"


def _printable(name: str) -> str:
    """A name without what would steer a terminal, or cannot be printed."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)


def _counts(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {_printable(reason.replace('_', ' '))}" for reason, count in left_out.items())


def _bars(histogram: list[tuple[int, int]]) -> list[str]:
    most = max(count for _, count in histogram)
    return [
        f"  {lower:>9,} – {2 * lower - 1:<9,} {'#' * -(-count * _BAR_WIDTH // most):<{_BAR_WIDTH}} {count:,}"
        for lower, count in histogram
    ]


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
