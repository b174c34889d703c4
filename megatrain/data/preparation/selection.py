"""Which documents are dropped before tokenising: too short, too long, repetitive, in another language, seen before.

The steps look at the text only, in the order of `REASONS`, and the first that objects is counted. Of documents that
are alike the first stays. The pass over the text is restartable: what it found is kept, a file for every few thousand
documents, until the data is complete.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import ConfigError, PreflightError
from megatrain.data.folder.hashed_files import write_bytes
from megatrain.data.preparation.workers import map_batches

REASONS = ("too_short", "too_long", "repetitive", "other_language", "duplicate", "near_duplicate")
KEPT = len(REASONS)
_TOO_SHORT, _TOO_LONG, _REPETITIVE, _OTHER_LANGUAGE, _DUPLICATE, _NEAR_DUPLICATE = range(KEPT)

_HASH_BYTES = 16
_PERMUTATIONS = 128  # of a MinHash: its estimate of a Jaccard similarity has a standard error of at most 0.044
_SHINGLE_WORDS = 5
_NGRAM_WORDS = 10
_LANGUAGE_CHARACTERS = 4000  # as much as tells a language
_CHUNK = ".selection-"  # how the names of the files begin that a pass over the text leaves


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionPolicy:
    """What `megatrain data prepare` is asked to leave out.

    Raises:
        ConfigError: an option is out of range.
        PreflightError: a library that a step needs is not installed.
    """

    minimum_characters: int = 0
    maximum_characters: int | None = None
    maximum_repetition: float | None = None  # see `repetition`
    languages: tuple[str, ...] = ()  # ISO 639-1
    duplicates: Literal["keep", "exact", "near"] = "keep"  # what to leave out
    near_similarity: float = 0.8  # Jaccard similarity of word 5-grams from which documents are alike

    def __post_init__(self) -> None:
        if (
            self.minimum_characters < 0
            or (self.maximum_characters or self.minimum_characters) < self.minimum_characters
        ):
            raise ConfigError(
                f"--min-characters, --max-characters: {self.minimum_characters}, {self.maximum_characters}: "
                "must be at least 0, the second not below the first"
            )
        if self.maximum_repetition is not None and not 0 < self.maximum_repetition <= 1:
            raise ConfigError(f"--max-repetition: {self.maximum_repetition}: must be a fraction above 0")
        if not 0.1 <= self.near_similarity < 1:
            raise ConfigError(f"--near-similarity: {self.near_similarity}: must be from 0.1 to under 1")
        if self.duplicates == "near":
            _require("datasketch", "--dedup near", "dedup")
        if self.languages:
            _require("py3langid", "--language", "language")

    @property
    def is_active(self) -> bool:
        return self != SelectionPolicy(near_similarity=self.near_similarity)

    def recipe(self) -> dict[str, Any]:
        """All that decides which documents are dropped; empty where none is."""
        if not self.is_active:
            return {}
        known = {key: value for key, value in asdict(self).items() if key != "near_similarity" or self.near}
        libraries = ["datasketch"] * self.near + ["py3langid"] * bool(self.languages)
        return known | {"languages": list(self.languages)} | {name: version(name) for name in libraries}

    @property
    def near(self) -> bool:
        return self.duplicates == "near"


class Signatures(NamedTuple):
    """What a pass over the text learns of N documents."""

    reason: NDArray[np.uint8]  # [N] an index of REASONS, or KEPT
    hash: NDArray[np.uint8]  # [N, 16] of the text; [N, 0] where duplicates stay
    minhash: NDArray[np.uint32]  # [N, 128]; [N, 0] unless near duplicates are dropped


class Selection:
    """Which of all documents stay, by their number."""

    def __init__(self, reasons: NDArray[np.uint8]) -> None:
        self._reasons = reasons

    def keeps(self, document: int) -> bool:
        return bool(self._reasons[document] == KEPT)

    @property
    def left_out(self) -> dict[str, int]:
        """Documents by reason."""
        counts = np.bincount(self._reasons, minlength=KEPT + 1)
        return {reason: int(counts[number]) for number, reason in enumerate(REASONS) if counts[number]}


def select(
    batches: Iterable[tuple[int, list[str]]], policy: SelectionPolicy, folder: Path, name: str, workers: int
) -> Selection:
    """Decide over all documents.

    Args:
        batches: texts in order, each batch with the number of its first document; the same on each run.
        folder: keeps what is learnt of each batch.
        name: of these inputs, so that nothing is taken for theirs that was learnt of others.
    """
    key = hashlib.sha256(json.dumps([name, policy.recipe()]).encode()).hexdigest()[:16]
    found = [*_sign(batches, policy, folder / f"{_CHUNK}{key}", workers)]
    if not found:
        return Selection(np.empty(0, np.uint8))
    reasons = np.concatenate([part.reason for part in found])
    if policy.duplicates != "keep":
        _mark_copies(reasons, np.concatenate([part.hash for part in found]))
    if policy.near:
        _mark_near_copies(reasons, np.concatenate([part.minhash for part in found]), policy.near_similarity)
    return Selection(reasons)


def forget(folder: Path) -> None:
    """Remove what passes over the text left in a folder."""
    for file in folder.iterdir():
        if file.name.startswith((_CHUNK, f".{_CHUNK}")):
            file.unlink()


def repetition(text: str) -> float:
    """How much of a text repeats the text before it: the larger of two shares, from 0 to 1.

    One is of the characters in lines that stand in the text before, the other of the 10-grams of words that do. Gopher
    (arXiv 2112.11446, table A1) leaves out texts above 0.2 of the first and 0.1 of the second.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = text.split()
    grams = [tuple(words[start : start + _NGRAM_WORDS]) for start in range(len(words) - _NGRAM_WORDS + 1)]
    characters, repeated, seen = sum(map(len, lines)), 0, set[str]()
    for line in lines:
        repeated += len(line) if line in seen else 0
        seen.add(line)
    of_lines = repeated / characters if characters else 0.0
    return max(of_lines, 1 - len(set(grams)) / len(grams) if grams else 0.0)


class Signer:
    """Texts -> `Signatures`; one in each worker."""

    def __init__(self, policy: SelectionPolicy) -> None:
        self._policy = policy
        if policy.near:
            from datasketch import MinHash

            self._minhash = MinHash(num_perm=_PERMUTATIONS)
        if policy.languages:
            import py3langid

            self._classify = py3langid.classify

    def __call__(self, texts: list[str]) -> Signatures:
        copies = self._policy.duplicates != "keep"
        reasons = np.array([self._reason(text) for text in texts], dtype=np.uint8)
        hashes = b"".join(_hash(text) for text in texts) if copies else b""
        near = np.zeros((len(texts), _PERMUTATIONS if self._policy.near else 0), dtype=np.uint32)
        if self._policy.near:
            for number in np.flatnonzero(reasons == KEPT):
                signature = self._minhash.copy()
                signature.update_batch(shingles(texts[number]))
                near[number] = signature.hashvalues
        return Signatures(reasons, np.frombuffer(hashes, dtype=np.uint8).reshape(len(texts), -1), near)

    def _reason(self, text: str) -> int:
        policy = self._policy
        if len(text) < policy.minimum_characters:
            return _TOO_SHORT
        if policy.maximum_characters is not None and len(text) > policy.maximum_characters:
            return _TOO_LONG
        if policy.maximum_repetition is not None and repetition(text) > policy.maximum_repetition:
            return _REPETITIVE
        if policy.languages and self._classify(text[:_LANGUAGE_CHARACTERS])[0] not in policy.languages:
            return _OTHER_LANGUAGE
        return KEPT


def shingles(text: str) -> list[bytes]:
    """Word 5-grams, in lower case; a shorter text is one shingle."""
    words = text.lower().split()
    last = max(1, len(words) - _SHINGLE_WORDS + 1)
    return [" ".join(words[start : start + _SHINGLE_WORDS]).encode() for start in range(last)]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).digest()


def _sign(
    batches: Iterable[tuple[int, list[str]]], policy: SelectionPolicy, prefix: Path, workers: int
) -> Iterator[Signatures]:
    done: dict[int, Path] = {}

    def fresh() -> Iterator[tuple[int, list[str]]]:
        """Batches without a file; a batch with one is only remembered."""
        for first, texts in batches:
            file = prefix.with_name(f"{prefix.name}-{first:012d}.npz")
            done[first] = file
            if not file.exists():
                yield first, texts

    for first, signatures in map_batches(fresh(), partial(Signer, policy), workers):
        content = io.BytesIO()
        np.savez(content, **signatures._asdict())
        write_bytes(done[first], content.getvalue())
    for first in sorted(done):
        with np.load(done[first], allow_pickle=False) as columns:
            yield Signatures(**columns)


def _mark_copies(reasons: NDArray[np.uint8], hashes: NDArray[np.uint8]) -> None:
    """Every document whose text stands in a kept one before it."""
    kept = np.flatnonzero(reasons == KEPT)
    if not len(kept):
        return
    keys = np.ascontiguousarray(hashes[kept]).view(f"V{_HASH_BYTES}").reshape(-1)
    _, first = np.unique(keys, return_index=True)
    copies = np.ones(len(kept), dtype=bool)
    copies[first] = False
    reasons[kept[copies]] = _DUPLICATE


def _mark_near_copies(reasons: NDArray[np.uint8], minhashes: NDArray[np.uint32], similarity: float) -> None:
    """Every document that is like a kept one before it, as far as locality-sensitive hashing finds it."""
    from datasketch import MinHash, MinHashLSH

    lookup = MinHashLSH(threshold=similarity, num_perm=_PERMUTATIONS)
    template = MinHash(num_perm=_PERMUTATIONS)
    for number in np.flatnonzero(reasons == KEPT).tolist():
        signature = template.copy()
        signature.hashvalues = minhashes[number].astype(template.hashvalues.dtype)
        candidates = lookup.query(signature)
        if candidates and (minhashes[candidates] == minhashes[number]).mean(axis=1).max() >= similarity:
            reasons[number] = _NEAR_DUPLICATE
        else:
            lookup.insert(number, signature, check_duplication=False)


def _require(library: str, option: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(library) is None:
        raise PreflightError(f"{option}: needs {library}, which is not installed: pip install 'megatrain[{extra}]'")
