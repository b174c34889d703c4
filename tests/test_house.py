"""How the code is kept: short files and functions, and imports at the top, where no circle can hide in them."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("launcher", "megatrain", "quickstart", "tests", "benchmarks")
MOST_LINES_OF_A_FILE = 350
MOST_LINES_OF_A_FUNCTION = 60

# Imports inside functions: what takes time and is not always needed, or is optional. Verbs import theirs when they run.
LATE_IMPORTS = {
    "launcher/planning/examples.py",
    "launcher/planning/sweep.py",
    "launcher/preflight/checks.py",
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


def test_files_and_functions_are_short() -> None:
    assert sizes() == ({}, {}), "split these"


def test_launcher_and_run_import_at_the_top() -> None:
    found = set()
    for path in sorted(path for room in ("launcher", "megatrain/run") for path in (ROOT / room).rglob("*.py")):
        functions = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if _is_function(node)]
        if any(isinstance(node, ast.Import | ast.ImportFrom) for one in functions for node in ast.walk(one)):
            found.add(str(path.relative_to(ROOT)))
    assert {name for name in found if not name.startswith("launcher/commands/")} == LATE_IMPORTS


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
