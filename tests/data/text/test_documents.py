import gzip
import json

import datasets
import pytest
import zstandard

from megatrain.data.text.documents import find_inputs, read_documents
from megatrain.errors import DataError

TEXTS = ["first", "zweiter: äöü", "third\nwith a line end"]
LINES = "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS)).encode()


def texts(*files, field="text"):
    return [document.content for document in read_documents(files, field)]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_jsonl_plain_and_compressed(tmp_path):
    assert texts(write(tmp_path / "a.jsonl", LINES)) == TEXTS
    assert texts(write(tmp_path / "a.jsonl.gz", gzip.compress(LINES))) == TEXTS
    assert texts(write(tmp_path / "a.jsonl.zst", zstandard.compress(LINES))) == TEXTS


def test_several_zstandard_frames_are_one_file(tmp_path):
    first, second = LINES[:37], LINES[37:]
    file = write(tmp_path / "a.jsonl.zst", zstandard.compress(first) + zstandard.compress(second))
    assert texts(file) == TEXTS


def test_the_last_line_may_lack_its_end(tmp_path):
    assert texts(write(tmp_path / "a.jsonl", LINES.rstrip(b"\n"))) == TEXTS


def test_lines_longer_than_a_chunk(tmp_path):
    long = "x" * (3 << 20)
    file = write(tmp_path / "a.jsonl", json.dumps({"text": long}).encode() + b"\n" + LINES)
    assert texts(file) == [long, *TEXTS]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_tables_come_through_datasets(tmp_path, suffix):
    table = datasets.Dataset.from_dict({"id": [1, 2, 3], "text": TEXTS})
    if suffix == "parquet":
        table.to_parquet(tmp_path / "a.parquet")
    else:
        table.save_to_disk(tmp_path)
    file = next(tmp_path.glob(f"*.{suffix}"))
    assert texts(file) == TEXTS
    with pytest.raises(DataError, match=r"has no field 'body'. It has id, text: choose with --text-field"):
        texts(file, field="body")


def test_a_plain_file_is_one_document_as_it_stands(tmp_path):
    assert texts(write(tmp_path / "a.py", b"a = 1\r\n\r\n")) == ["a = 1\r\n\r\n"]
    assert texts(write(tmp_path / "a.txt.gz", gzip.compress(b"hello\n"))) == ["hello\n"]
    assert texts(write(tmp_path / "empty.txt", b"")) == []


def test_folders_and_globs_are_sorted_and_nothing_is_read_twice(tmp_path):
    for name in ("b/2.txt", "a.txt", "b/1.txt", ".hidden/x.txt"):
        write(tmp_path / name, b"x")
    expected = [tmp_path / name for name in ("a.txt", "b/1.txt", "b/2.txt")]
    assert find_inputs([tmp_path]) == expected
    assert find_inputs([str(tmp_path / "**/*.txt")]) == expected
    assert find_inputs([tmp_path / "b/2.txt", tmp_path]) == [expected[2], *expected[:2]]


def test_bytes_read_reach_the_size_of_all_files(tmp_path):
    files = [write(tmp_path / "a.txt", b"abc"), write(tmp_path / "b.jsonl", LINES)]
    positions = [document.bytes_read for document in read_documents(files, "text")]
    assert positions == sorted(positions)
    assert positions[-1] == 3 + len(LINES)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", LINES + b"{broken\n", r"a\.jsonl:4: is not valid JSON"),
        ("a.jsonl", b'{"body": "x"}\n', r"a\.jsonl:1: has no field 'text'. It has body: choose with --text-field"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl:1: text: 3: must be text"),
        ("a.jsonl", b'["text"]\n', r"a\.jsonl:1: must be a JSON object"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1: text: half a surrogate pair"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl:1: is not valid JSON"),
        ("a.jsonl.gz", gzip.compress(LINES * 99)[:-9], r"a\.jsonl\.gz: its compressed data is damaged or cut off"),
        ("a.jsonl.gz", b"plain", r"a\.jsonl\.gz: "),
        (
            "a.jsonl.zst",
            zstandard.compress(LINES * 99)[:-5],
            r"a\.jsonl\.zst: its compressed data is damaged or cut off",
        ),
        ("a.jsonl.zst", b"plain", r"a\.jsonl\.zst: its compressed data is damaged or cut off"),
        ("a.png", b"\x89PNG\r\n\x1a\n", r"a\.png: is not UTF-8 text \(byte 0\).*glob"),
        ("a.json", b"{}", r"a\.json: .*Write a \.jsonl"),
        ("a.parquet", b"plain", r"a\.parquet: cannot be read: Parquet file"),
    ],
)
def test_what_is_not_text_is_refused_by_name(tmp_path, name, data, message):
    with pytest.raises(DataError, match=message):
        texts(write(tmp_path / name, data))


def test_an_input_that_stands_for_nothing(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file"):
        find_inputs([tmp_path / "nowhere"])
