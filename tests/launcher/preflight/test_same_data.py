"""Data that is read twice is told."""

from launcher.preflight.same_data import check_same_files
from tests.launcher.conftest import write_data
from tests.launcher.preflight.test_checks import texts


def test_validation_data_that_was_trained_on(tiny, here):
    write_data(here / "data/train")
    (text,) = texts(tiny("data.validation=[{path: ./data/train}]"))
    assert text.startswith("data.validation.0: ./data/train: is the same data as data.train.0 (data/train)")


def test_a_source_that_is_named_twice(tiny, here):
    write_data(here / "data/train")
    write_data(here / "data/other", tokens=90_000)
    (text,) = texts(tiny("data.train=[{path: data/train}, {path: data/other}, {path: data/train/}]"))
    assert text.startswith("data.train.2: data/train/: is the same data as data.train.0 (data/train): it is read twice")


def test_files_of_examples_by_their_bytes(here):
    for name, content in {"a": "1", "b": "2", "copy": "1", "longer": "12", "empty": "", "none": ""}.items():
        (here / name).write_text(content)
    found = [
        finding.text for finding in check_same_files(["a", "b", "./b", "empty"], ["copy", "longer", "none", "gone"])
    ]
    assert [text.partition(": is the same data as ")[::2] for text in found] == [
        ("finetune.train.2: ./b", "finetune.train.1 (b): it is read twice as often."),
        (
            "finetune.validation.0: copy",
            "finetune.train.0 (a): its loss will not tell how well the model does on new text.",
        ),
    ]
