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


def importers(*modules: str) -> set[str]:
    """Files of megatrain that import one of these, or a part of one, anywhere in them."""
    found = set()
    for path in sorted((ROOT / "megatrain").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if any(name == module or name.startswith(f"{module}.") for name in names for module in modules):
                found.add(str(path.relative_to(ROOT / "megatrain")))
    return found


def test_deepspeed_is_known_by_the_engine_and_by_who_reads_its_state() -> None:
    replaced = {"train/deepspeed_patches.py", "train/zero1.py", "train/zero2.py"}
    assert importers("deepspeed") == {"train/engine.py", "checkpoint/deepspeed_state.py"} | replaced


def test_models_kernels_and_tasks_know_no_other_ranks() -> None:
    rooms = ("model/", "kernels/", "tasks/", "optim/", "schedule/")
    found = importers("torch.distributed", "megatrain.parallel", "deepspeed")
    assert {path for path in found if path.startswith(rooms)} == set()
