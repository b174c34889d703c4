"""The README's tree says where things are: it has to be true."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tree() -> Iterator[Path]:
    """The paths of the README's tree, from its indentation."""
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


def test_every_package_has_its_line():
    packages = {folder.relative_to(ROOT) for root in ("launcher", "megatrain") for folder in (ROOT / root).glob("*/")}
    with_code = {folder for folder in packages if any((ROOT / folder).glob("*.py"))}
    assert with_code - set(tree()) == set()
