"""Paths, commands and targets that the documents name are there."""

import re
from pathlib import Path

import pytest

from launcher.cli import VERBS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/**/*.md")])
TOPS = ("launcher", "megatrain", "configs", "tests", "slurm", "quickstart", "benchmarks", "docs", r"\.ci", r"\.github")
PATH = re.compile(rf"`((?:{'|'.join(TOPS)})/[\w./-]*)`")
TARGET = re.compile(r"`make ([a-z-]+)")
COMMAND = re.compile(r"^(?:\$ )?megatrain (\S+)", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_is_there(document: Path) -> None:
    if document.name == "CHANGELOG.md":
        pytest.skip("tells of what there was")
    text = document.read_text(encoding="utf-8")
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [path for path in PATH.findall(text) if not (ROOT / path).exists()] == []
    assert [name for name in TARGET.findall(text) if f"\n{name}:" not in targets] == []
    assert [verb for verb in COMMAND.findall(text) if verb not in {verb.split(".")[0] for verb in VERBS}] == []


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
