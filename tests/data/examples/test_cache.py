"""What the launcher has encoded is what the ranks map, and nothing else is taken for it."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from megatrain.data.examples.cache import fingerprint, open_examples, remove_others, write_examples
from megatrain.data.examples.example_set import read_example_set
from megatrain.data.examples.identity import identity
from megatrain.tasks.sft.section import SFTSection
from tests.data.examples.test_example_set import model

FIELDS = ("tokens", "ends", "is_target")


@pytest.fixture
def given(tokenizer, write_pairs):
    """Arguments of `read_example_set` and `fingerprint`."""
    file = write_pairs(*({"prompt": "who" * n, "response": "me" * (n + 1)} for n in range(1, 6)))
    options = {"template": None, "sequence_length": 24, "model": model(1000)}
    return SimpleNamespace(arguments=([file], tokenizer, SFTSection()), options=options, file=file)


def read(given):
    return read_example_set(*given.arguments, **given.options)


def test_mapped_rows_are_those_that_were_written(given, tmp_path) -> None:
    found = read(given)
    write_examples(tmp_path / "kept", found)
    mapped = open_examples(tmp_path / "kept")
    assert len(mapped.rows) == len(found.rows) > 1
    for mine, theirs in zip(mapped.rows, found.rows, strict=True):
        for field in FIELDS:
            one, other = getattr(mine, field), getattr(theirs, field)
            assert one.dtype == other.dtype
            assert np.array_equal(one, other), field
    assert [row.targets for row in mapped.rows[1:]] == [row.targets for row in found.rows[1:]]
    assert np.array_equal(mapped.rows[-1].tokens, found.rows[-1].tokens)
    assert identity(mapped.rows, 1) == identity(found.rows, 1)
    assert (mapped.tokens, mapped.examples, list(mapped.files)) == (found.tokens, found.examples, list(found.files))
    with pytest.raises(IndexError):
        mapped.rows[len(found.rows)]


@pytest.mark.parametrize("name", ["tokens.npy", "is_target.npy", "ends.npy", "first.npy", "examples.json"])
@pytest.mark.parametrize("damage", ["gone", "short"])
def test_what_is_not_whole_is_not_opened(given, tmp_path, name, damage) -> None:
    write_examples(tmp_path / "kept", read(given))
    file = tmp_path / "kept" / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-3])
    assert open_examples(tmp_path / "kept") is None


def test_a_file_of_another_kind_is_not_opened(given, tmp_path) -> None:
    write_examples(tmp_path / "kept", read(given))
    np.save(tmp_path / "kept/tokens.npy", np.array([object()], dtype=object), allow_pickle=True)
    assert open_examples(tmp_path / "kept") is None


def test_another_file_task_or_length_has_another_fingerprint(given, tmp_path) -> None:
    paths, tokenizer, section = given.arguments
    first = fingerprint(paths, tokenizer, section, **given.options)
    assert fingerprint(paths, tokenizer, section, **given.options) == first
    others = [
        fingerprint(paths, tokenizer, SFTSection(truncation="drop"), **given.options),
        fingerprint(paths, tokenizer, section, **given.options | {"sequence_length": 25}),
        fingerprint(paths, tokenizer, section, **given.options | {"model": model(2000)}),
        fingerprint(paths, tokenizer, section, **given.options | {"template": SimpleNamespace(source="{{ x }}")}),
    ]
    os.utime(given.file, ns=(1, 1))
    others.append(fingerprint(paths, tokenizer, section, **given.options))
    assert len({first, *others}) == 1 + len(others)


def test_those_of_before_are_removed(given, tmp_path) -> None:
    for name in ("new", "old"):
        write_examples(tmp_path / name, read(given))
    remove_others(tmp_path, {"new"})
    assert [folder.name for folder in tmp_path.iterdir() if folder.name in ("new", "old")] == ["new"]
    remove_others(tmp_path / "nowhere", set())


def test_more_than_tokens_and_targets_is_not_written(given, tmp_path) -> None:
    found = read(given)
    write_examples(tmp_path / "kept", type("Other", (type(found),), {})(
        rows=found.rows, files=found.files, sequence_length=found.sequence_length
    ))  # fmt: skip
    assert not (tmp_path / "kept").exists()
