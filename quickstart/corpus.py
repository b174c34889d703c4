"""The text that Python ships, as a corpus: nothing to download, and real English and real code.

OUT/
    docs.jsonl                   {"name", "text"}: the reference manual as `help()` shows it, a topic a document
    code.jsonl                   {"name", "text"}: the standard library's sources, a module a document
    validation.jsonl             {"name", "text"}: topics and modules that the two above do not have
    instructions-train.jsonl     {"prompt", "response"}: a function, and the first line of its docstring
    instructions-validation.jsonl    the same, from the modules of validation.jsonl
    corpus.json                  what was written, and from which Python; written last

A top-level package or module is held out as a whole, by a hash of its name.
"""

import ast
import hashlib
import json
import platform
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc_data import topics
from typing import Any, NamedTuple

from megatrain.base.errors import DataError
from megatrain.base.files import write_atomically, write_json

VERSION = 1  # of what is written; a corpus of another version is built again
HELD_OUT = 1 / 16  # of the top-level names

# Not code to learn from: tests, tables of character codes, generated text, a copy of the language, other people's
# packages.
_SKIPPED = {"test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3", "site-packages", "dist-packages"}

_LONGEST_FUNCTION = 400  # characters, so that prompt and response fit into a sample of 256 tokens


class Document(NamedTuple):
    name: str  # a module's path, such as asyncio/events.py, or a topic
    text: str

    @property
    def held_out(self) -> bool:
        top_level = self.name.split("/")[0].removesuffix(".py")
        digest = hashlib.sha256(top_level.encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


class Pair(NamedTuple):
    prompt: str
    response: str


def build(out: Path) -> dict[str, Any]:
    """Writes the corpus, unless this Python has written it there already. Returns the content of corpus.json.

    Raises:
        DataError: this Python comes without the sources of its standard library.
    """
    receipt = out / "corpus.json"
    if (found := _read_receipt(receipt)) is not None:
        return found
    docs = [Document(name, text) for name, text in sorted(topics.topics.items())]
    code = list(modules(Path(sysconfig.get_paths()["stdlib"])))
    if not code:
        raise DataError(f"{sysconfig.get_paths()['stdlib']}: no Python sources; use a Python with its standard library")
    train = [document for document in docs + code if not document.held_out]
    validation = without_text_of(train, [document for document in docs + code if document.held_out])
    train_pairs = list(dict.fromkeys(pairs(document for document in code if not document.held_out)))
    held_out_pairs = list(dict.fromkeys(pairs(document for document in code if document.held_out)))
    seen = {text for pair in train_pairs for text in pair}
    files: dict[str, Sequence[Document | Pair]] = {
        "docs.jsonl": [document for document in docs if not document.held_out],
        "code.jsonl": [document for document in code if not document.held_out],
        "validation.jsonl": validation,
        "instructions-train.jsonl": train_pairs,
        "instructions-validation.jsonl": [pair for pair in held_out_pairs if not seen.intersection(pair)],
    }
    counts = {name: _write(out / name, rows) for name, rows in files.items()}
    written = {"version": VERSION, "python": platform.python_version(), "files": counts}
    write_json(receipt, written)
    return written


def is_intact(out: Path) -> bool:
    """Whether this Python's corpus is there, as it was written."""
    return _read_receipt(out / "corpus.json") is not None


def modules(folder: Path) -> Iterator[Document]:
    """The modules below a folder of Python sources, in the order of their names."""
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        generated = name.name.startswith("_sysconfigdata")
        if generated or any(part in _SKIPPED or part.startswith("config-") for part in name.parts[:-1]):
            continue
        try:
            with tokenize.open(path) as file:  # honours the encoding that a source declares
                text = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue  # a source in no known encoding
        if text.strip():
            yield Document(name.as_posix(), text)


def without_text_of(train: Iterable[Document], held_out: Iterable[Document]) -> list[Document]:
    """The held-out documents without the paragraphs that stand in a training document too.

    The manual repeats itself: a chapter is a topic, and so are its sections.
    """
    known = {paragraph for document in train for paragraph in _paragraphs(document.text)}
    kept = []
    for document in held_out:
        text = "\n\n".join(paragraph for paragraph in _paragraphs(document.text) if paragraph not in known)
        if text:
            kept.append(Document(document.name, text + "\n"))
    return kept


def pairs(documents: Iterable[Document]) -> Iterator[Pair]:
    """Functions without their docstring as prompts, with its first line as the response."""
    for document in documents:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources have escapes that newer Pythons warn of
            try:
                tree = ast.parse(document.text)
            except SyntaxError:
                continue
        lines = document.text.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (pair := _pair(node, lines)):
                yield pair


def _pair(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> Pair | None:
    summary = (ast.get_docstring(function) or "").split("\n")[0].strip()
    a_sentence = 15 <= len(summary) <= 100 and summary[0].isupper() and summary.endswith(".")
    if not a_sentence or len(function.body) < 2:
        return None
    docstring = function.body[0]
    signature = lines[function.lineno - 1 : docstring.lineno - 1]
    body = lines[docstring.end_lineno : function.end_lineno]
    source = textwrap.dedent("\n".join(signature + body)).strip()
    if len(source) > _LONGEST_FUNCTION or not signature:
        return None
    return Pair(f"{source}\n\nWhat does {function.name} do?\n", summary)


def _paragraphs(text: str) -> list[str]:
    return [stripped for paragraph in text.split("\n\n") if (stripped := paragraph.strip("\n"))]


def _write(path: Path, rows: Sequence[Document | Pair]) -> dict[str, Any]:
    text = "".join(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, text)
    encoded = text.encode()
    return {"rows": len(rows), "bytes": len(encoded), "sha256": hashlib.sha256(encoded).hexdigest()}


def _read_receipt(path: Path) -> dict[str, Any] | None:
    """The receipt of a corpus that is all there, or None."""
    try:
        receipt: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = receipt["version"] == VERSION and receipt["python"] == platform.python_version()
        intact = all(
            hashlib.sha256((path.parent / name).read_bytes()).hexdigest() == file["sha256"]
            for name, file in receipt["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return receipt if same and intact else None
