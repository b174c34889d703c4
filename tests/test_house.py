"""The size of files and functions: what does not fit on a few screens is split where a reader would want to."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("launcher", "megatrain", "quickstart", "tests", "benchmarks")
MOST_LINES_OF_A_FILE = 350
MOST_LINES_OF_A_FUNCTION = 60

# What is still larger; what has become short leaves the list.
LONG_FILES = {
    "launcher/planning/plan.py",
    "megatrain/checkpoint/metadata.py",
    "megatrain/config/__init__.py",
    "tests/config/test_file.py",
    "tests/data/preparation/test_prepare.py",
    "tests/train/test_checkpointing.py",
}
LONG_FUNCTIONS = {
    "megatrain/finetune/__main__.py:finetune",
    "megatrain/train/build.py:build",
}


def sizes() -> tuple[dict[str, int], dict[str, int]]:
    """Lines of each file, and of each function by `path:qualified.name`, that are over the limit."""
    files, functions = {}, {}
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        if (lines := text.count("\n")) > MOST_LINES_OF_A_FILE:
            files[name] = lines
        functions |= {f"{name}:{function}": lines for function, lines in long_functions(ast.parse(text))}
    return files, functions


def long_functions(tree: ast.AST, prefix: str = "") -> list[tuple[str, int]]:
    found = []
    for node in ast.iter_child_nodes(tree):
        inner = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{prefix}{node.name}."
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if not isinstance(node, ast.ClassDef) and lines > MOST_LINES_OF_A_FUNCTION:
                found.append((f"{prefix}{node.name}", lines))
        found += long_functions(node, inner)
    return found


@pytest.mark.parametrize(("number", "allowed"), [(0, LONG_FILES), (1, LONG_FUNCTIONS)], ids=["files", "functions"])
def test_files_and_functions_are_short(number: int, allowed: set[str]) -> None:
    found = sizes()[number]
    assert {name: lines for name, lines in found.items() if name not in allowed} == {}, "split these"
    assert allowed - found.keys() == set(), "these are short, or gone: take them off the list"
