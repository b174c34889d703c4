import hashlib
import json
import sysconfig
from pathlib import Path

import pytest

from quickstart.corpus import Document, build, is_intact, modules, pairs, without_text_of

FUNCTION = '''
class Cell:
    def set(self, value):
        """Put a value into the cell.

        More about it.
        """
        self.value = value
        return self
'''


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of the Python that runs the tests."""
    out = tmp_path_factory.mktemp("corpus")
    build(out)
    return out


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One package of the library in place of all."""
    package = str(Path(sysconfig.get_paths()["stdlib"]) / "asyncio")
    monkeypatch.setattr("quickstart.corpus.sysconfig.get_paths", lambda: {"stdlib": package})


def rows(corpus: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (corpus / name).read_text(encoding="utf-8").splitlines()]


def top_level(row: dict[str, str]) -> str:
    return row["name"].split("/")[0].removesuffix(".py")


def test_there_is_enough_to_train_on(corpus):
    assert sum(len(row["text"]) for row in rows(corpus, "docs.jsonl")) > 300_000
    assert sum(len(row["text"]) for row in rows(corpus, "code.jsonl")) > 4_000_000
    assert sum(len(row["text"]) for row in rows(corpus, "validation.jsonl")) > 50_000
    assert len(rows(corpus, "instructions-train.jsonl")) > 1_000
    assert len(rows(corpus, "instructions-validation.jsonl")) > 50


def test_no_module_is_on_both_sides(corpus):
    train = rows(corpus, "docs.jsonl") + rows(corpus, "code.jsonl")
    assert not {top_level(row) for row in train} & {top_level(row) for row in rows(corpus, "validation.jsonl")}


def test_no_paragraph_is_on_both_sides(corpus):
    train = rows(corpus, "docs.jsonl") + rows(corpus, "code.jsonl")
    known = {paragraph.strip("\n") for row in train for paragraph in row["text"].split("\n\n")}
    held_out = {
        paragraph.strip("\n") for row in rows(corpus, "validation.jsonl") for paragraph in row["text"].split("\n\n")
    }
    assert not known & held_out


def test_no_prompt_or_response_is_on_both_sides(corpus):
    train = rows(corpus, "instructions-train.jsonl")
    held_out = rows(corpus, "instructions-validation.jsonl")
    for field in ("prompt", "response"):
        assert not {row[field] for row in train} & {row[field] for row in held_out}


def test_no_prompt_gives_its_response_away(corpus):
    assert not [row for row in rows(corpus, "instructions-train.jsonl") if row["response"] in row["prompt"]]


def test_building_again_gives_the_same_bytes(small, tmp_path):
    for name in ("first", "again"):
        build(tmp_path / name)
    for file in (tmp_path / "first").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_an_intact_corpus_is_used_again_and_a_damaged_one_is_mended(small, tmp_path):
    receipt = build(tmp_path)
    file = tmp_path / "docs.jsonl"
    before = file.stat().st_mtime_ns
    assert build(tmp_path) == receipt
    assert file.stat().st_mtime_ns == before

    file.write_bytes(file.read_bytes()[:-1])
    assert not is_intact(tmp_path)
    build(tmp_path)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == receipt["files"]["docs.jsonl"]["sha256"]


@pytest.mark.parametrize("damage", ["", "[]", '{"version": 1}', "{"])
def test_a_receipt_that_says_nothing_is_not_believed(tmp_path, damage):
    (tmp_path / "corpus.json").write_text(damage)
    assert not is_intact(tmp_path)


def test_a_pair_is_a_function_without_its_docstring_and_the_first_line_of_it():
    (pair,) = pairs([Document("cell.py", FUNCTION)])
    assert pair.response == "Put a value into the cell."
    assert pair.prompt == "def set(self, value):\n    self.value = value\n    return self\n\nWhat does set do?\n"


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """Only a docstring, no code."""\n',
        'def f():\n    """lower case, so not a sentence."""\n    return 1\n',
        'def f():\n    """Too short."""\n    return 1\n',
        'def f():\n    """A sentence that is cut\n    in two."""\n    return 1\n',
        "def f(:\n",
        'def f():\n    """One line that says it all."""\n    return "' + "x" * 500 + '"\n',
    ],
)
def test_what_would_not_teach_makes_no_pair(source):
    assert list(pairs([Document("f.py", source)])) == []


def test_tests_tables_and_other_peoples_packages_are_skipped(tmp_path):
    for name in ("good.py", "pkg/also.py", "test/a.py", "pkg/tests/a.py", "encodings/a.py", "site-packages/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\ns = 'é'\n".encode("latin-1"))
    (tmp_path / "broken.py").write_bytes(b"\xff\xfe")
    found = {document.name: document.text for document in modules(tmp_path)}
    assert list(found) == ["good.py", "latin.py", "pkg/also.py"]
    assert "é" in found["latin.py"]


def test_held_out_text_loses_the_paragraphs_that_training_has():
    train = [Document("a", "shared\n\nonly in a")]
    held_out = [Document("b", "shared\n\nonly in b"), Document("c", "shared")]
    assert without_text_of(train, held_out) == [Document("b", "only in b\n")]
