"""`make realdata`: two real corpora that Debian packages, prepared and mixed 70/30, with their counts.

The reference manual of Python 3.11 as reStructuredText (`python3.11-doc`, PSF licence) and the GNU Collaborative
International Dictionary of English (`dict-gcide`, GPL). apt fetches the packages, from a mirror or its cache, and they
are unpacked into data/realdata: nothing is installed, and no root is needed.
"""

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from megatrain.base.errors import DataError, MegatrainError, PreflightError
from megatrain.data.folder.manifest import read_manifest
from quickstart.shell import BrokenPromiseError, expect, megatrain, say

DATA = Path("data/realdata")
PACKAGES = ("python3.11-doc", "dict-gcide")
WEIGHTS = {"manual": 0.7, "dictionary": 0.3}
VOCABULARY = "16384"
SEQUENCE = "256"
_DIGITS = {letter: n for n, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


def main() -> int:
    try:
        root = fetch(DATA / "packages")
        inputs = {"manual": manual(root), "dictionary": dictionary(root)}
        prepare(inputs)
        mix()
    except (BrokenPromiseError, MegatrainError) as error:
        say(f"\nerror: realdata: {error}")
        return 1
    return 0


def fetch(folder: Path) -> Path:
    """The packages' files, unpacked; those that are there already are not fetched again.

    Raises:
        PreflightError: apt or dpkg-deb is missing, or cannot get a package.
    """
    for package in PACKAGES:
        if (folder / f"{package}.done").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
            (archive,) = folder.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", archive.name, "root"], cwd=folder, check=True)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise PreflightError(
                f"{package}: cannot be fetched ({error}). This needs Debian 12 and its package lists: run "
                "`apt-get update` as root, and try again."
            ) from None
        archive.unlink()
        (folder / f"{package}.done").touch()
    return folder / "root"


def manual(root: Path) -> str:
    """A page a document."""
    return str(root / "usr/share/doc/python3.11/html/_sources/**/*.rst.txt")


def dictionary(root: Path) -> str:
    """An entry per document, as jsonl.

    Raises:
        DataError: the package holds no dictionary.
    """
    out = DATA / "dictionary.jsonl"
    with open(out, "w", encoding="utf-8") as file:
        for text in entries(root / "usr/share/dictd/gcide"):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    if not out.stat().st_size:
        raise DataError(f"{root}: holds no dictionary entry")
    return str(out)


def entries(name: Path) -> Iterator[str]:
    """The entries of a dictd dictionary: NAME.index says where each lies in NAME.dict.dz, which is gzip's format.

    Numbers are written in the digits of base64, the highest first. Several headwords may share an entry; those that
    begin with 00-database are about the dictionary itself.
    """
    data = gzip.decompress(name.with_suffix(".dict.dz").read_bytes())
    places: set[tuple[int, int]] = set()
    for line in name.with_suffix(".index").read_text(encoding="utf-8", errors="replace").splitlines():
        _, offset, length = line.split("\t")[:3]
        places.add((_number(offset), _number(length)))
    for start, count in sorted(places):
        text = data[start : start + count].decode("utf-8", errors="replace").strip()
        if not text.startswith("00-database"):
            yield text


def prepare(inputs: dict[str, str]) -> None:
    """A tokenizer of both, then each with a hundredth of its documents held out and copies dropped."""
    tokenizer = str(DATA / "tokenizer")
    for old in ("tokenizer", *inputs, *(f"{name}-held" for name in inputs)):
        shutil.rmtree(DATA / old, ignore_errors=True)
    megatrain("data", "tokenizer", "train", *inputs.values(), "--out", tokenizer, "--vocab-size", VOCABULARY)
    for name, source in inputs.items():
        out, held = str(DATA / name), str(DATA / f"{name}-held")
        options = ("--holdout", "0.01", "--holdout-out", held, "--dedup", "exact")
        packing = ("--pack", "best_fit", "--sequence-length", SEQUENCE)
        megatrain("data", "prepare", source, "--out", out, "--tokenizer", tokenizer, *options, *packing)
        megatrain("data", "verify", out, held)
        megatrain("data", "inspect", out)


def mix() -> None:
    """What a run of two epochs of the manual would read of each."""
    rows = read_manifest(DATA / "manual").rows(int(SEQUENCE))
    steps = round(2 * rows / WEIGHTS["manual"] / 32)
    train = ", ".join(f"{{path: {DATA / name}, weight: {weight}}}" for name, weight in WEIGHTS.items())
    held = ", ".join(f"{{path: {DATA / name}-held}}" for name in WEIGHTS)
    fields = (f"data.train=[{train}]", f"data.validation=[{held}]", f"tokenizer.path={DATA / 'tokenizer'}")
    outcome = megatrain("data", "plan", "configs/quickstart.yaml", *fields, f"training.steps={steps}", "--json")
    plan = json.loads(outcome.lines[-1])
    for source in plan["sources"]:
        say(f"  {source['path']:<28} {source['tokens']:>12,} tokens read, {source['epochs']:.2f} times what it holds")
    share = plan["sources"][0]["tokens"] / plan["tokens"]
    expect(f"{share:.2%} of what a run reads is the manual", abs(share - WEIGHTS["manual"]) < 0.001)


def _number(text: str) -> int:
    value = 0
    for letter in text:
        value = 64 * value + _DIGITS[letter]
    return value


if __name__ == "__main__":
    sys.exit(main())
