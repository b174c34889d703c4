"""The names in a run's folder, and files that are never seen half written."""

import json
import threading

import pytest

from megatrain.base.files import write_atomically, write_json
from megatrain.run.directory import MANIFEST, RunDir, parse_step


def test_names_creates_nothing(tmp_path):
    run = RunDir(tmp_path / "run")
    assert str(run) == str(tmp_path / "run")
    assert run.step(1000).relative_to(run.path).as_posix() == "checkpoints/step-00001000"
    assert run.steps() == []
    assert not run.path.exists()


def test_only_committed_checkpoints_count(tmp_path):
    run = RunDir(tmp_path)
    for name in ("step-00000020", "step-00000003", "step-123456789", "step-7", "step-0000001x", ".tmp-step-00000009"):
        (run.checkpoints / name).mkdir(parents=True)
        (run.checkpoints / name / MANIFEST).touch()
    (run.checkpoints / "step-00000005").mkdir()  # not finished: no manifest
    (run.checkpoints / "step-00000006").touch()
    assert run.steps() == [3, 20, 123456789]


@pytest.mark.parametrize("step", [0, 1, 99_999_999, 100_000_000])
def test_a_steps_folder_is_parsed_back(step):
    assert parse_step(RunDir("run").step(step)) == step


@pytest.mark.parametrize(
    "name",
    [
        *("step-", "step-12", "step-0000000a", "xstep-00000001", "step-00000001 ", "step-00000001\n"),
        *("step-٠٠٠٠٠٠٩٩", "step-000000001", "step-" + "9" * 5000),
    ],
)
def test_other_folders_are_no_step(tmp_path, name):
    assert parse_step(tmp_path / name) is None


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "below" / "file"
    texts = {"a" * 100_000, "b" * 100_000}
    write_atomically(path, min(texts))
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(10):
        for text in texts:
            write_atomically(path, text)
    done.set()
    reader.join()
    assert seen <= texts
    assert list(path.parent.iterdir()) == [path]


def test_json_is_readable_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": [2.5, None]})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"b": 1, "a": [2.5, None]}
    assert text.index('"b"') < text.index('"a"'), "in the order given"
    assert text.endswith("}\n")
