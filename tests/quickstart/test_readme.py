"""The README's file tree says where things are: it has to be true."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("launcher", "megatrain", "quickstart")


def tree() -> Iterator[Path]:
    """The paths of the README's file tree, from its indentation."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Where things are", 1)[1]
    lines = section.split("```")[1].strip("\n").splitlines()
    above: list[str] = []
    for line in lines:
        match = re.match(r"( *)(\S+)  +\S", line)
        assert match, f"no name and description: {line!r}"
        depth = len(match[1]) // 2
        above[depth:] = [match[2]]
        yield Path(*above)


def test_all_that_the_tree_names_is_there():
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_every_source_file_has_its_line():
    sources = {
        path.relative_to(ROOT)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sources - set(tree()) == set()
