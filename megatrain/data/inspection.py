"""What a prepared folder holds, for a person to look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatrain.data.manifest import TOKENIZER, Manifest
from megatrain.data.shards import PreparedData
from megatrain.data.tokenizer import Tokenizer

_SAMPLE_TOKENS = 100
_BAR_WIDTH = 40
_SHOWN_SOURCES = 10


@dataclass(frozen=True, slots=True)
class Inspection:
    path: Path
    manifest: Manifest
    lengths: NDArray[np.int64]  # tokens of each document, EOS included
    sample: str  # the first tokens, decoded

    def histogram(self) -> list[tuple[int, int]]:
        """(lower bound, documents): lengths from it up to twice it. Bounds are powers of two, without gaps."""
        exponents = np.frexp(self.lengths)[1] - 1  # floor of the binary logarithm, exactly
        counts = np.bincount(exponents)
        first = int(exponents.min())
        return [(1 << exponent, int(counts[exponent])) for exponent in range(first, len(counts))]

    def as_json(self) -> dict[str, Any]:
        manifest = self.manifest
        return {
            "path": str(self.path),
            "part": manifest.recipe.part,
            "tokens": manifest.tokens,
            "documents": manifest.documents,
            "blocks": manifest.blocks,
            "block_tokens": manifest.block_tokens,
            "shards": len(manifest.shards),
            "bytes": sum(shard.bytes for shard in manifest.shards),
            "vocab_size": manifest.vocab_size,
            "eos_id": manifest.eos_id,
            "dtype": manifest.recipe.dtype,
            "tokenizer_sha256": manifest.tokenizer_sha256,
            "manifest_hash": manifest.manifest_hash,
            "sources": [{"name": s.name, "bytes": s.bytes, "sha256": s.sha256} for s in manifest.recipe.sources],
            "document_tokens": {
                "mean": float(self.lengths.mean()),
                "median": float(np.median(self.lengths)),
                "maximum": int(self.lengths.max()),
            },
            "histogram": [{"from": lower, "documents": count} for lower, count in self.histogram()],
            "sample": self.sample,
        }

    def as_text(self) -> str:
        facts = self.as_json()
        sources = self.manifest.recipe.sources
        shown = [f"  {source.name} ({_size(source.bytes)})" for source in sources[:_SHOWN_SOURCES]]
        if len(sources) > _SHOWN_SOURCES:
            shown.append(f"  and {len(sources) - _SHOWN_SOURCES:,} more")
        length = facts["document_tokens"]
        return "\n".join(
            [
                f"{self.path}: {facts['tokens']:,} tokens in {facts['documents']:,} documents ({facts['part']} set)",
                f"{facts['shards']} shards, {_size(facts['bytes'])}; {facts['blocks']} blocks of "
                f"{facts['block_tokens']:,} tokens; vocabulary {facts['vocab_size']:,} ({facts['dtype']})",
                f"{len(sources):,} source files, {_size(sum(source.bytes for source in sources))}:",
                *shown,
                f"tokens a document: mean {length['mean']:,.0f}, median {length['median']:,.0f}, "
                f"maximum {length['maximum']:,}",
                *_bars(self.histogram()),
                "it begins:",
                *(f"  {line}" for line in self.sample.splitlines()),
            ]
        )


def inspect_data(path: str | Path) -> Inspection:
    """Read a prepared folder's document ends and its first tokens.

    Raises:
        DataError: the folder is not whole.
    """
    data = PreparedData(path)
    try:
        stride = data.manifest.block_tokens
        # the token that two blocks share may end a document: counted in both, once after `unique`
        ends = np.unique(np.concatenate([block * stride + data.block_ends(block) for block in range(len(data.index))]))
        tokens = data.block_tokens(0)[:_SAMPLE_TOKENS]
        sample = Tokenizer.load(f"{data.path}/{TOKENIZER}").decode(tokens)
        return Inspection(Path(data.path), data.manifest, np.diff(ends, prepend=0), sample)
    finally:
        data.close()


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
