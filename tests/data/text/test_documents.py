import bz2
import gzip
import json
import lzma
import os
import tracemalloc
from collections import Counter

import pytest
from backports import zstd

from megatrain.base.errors import DataError
from megatrain.data.text.documents import describe, read_documents
from megatrain.data.text.inputs import find_inputs, records

TEXTS = ["first", "zweiter: äöü", "third\nwith a line end"]
LINES = "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS)).encode()


def texts(*files, field="text"):
    return [document.content for document in read_documents(files, field)]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    "name",
    [
        *("a.jsonl", "A.JSONL", "a.jsonlines", "a.ndjson", "a.json", "part-00000", "a.jsonl-00000-of-00002"),
        *("train-00000-of-00002.jsonl", "a.txt", "a.jsonl.part3"),  # by their content
    ],
)
def test_json_lines_under_any_name(tmp_path, name, compression):
    ending = compression.upper() if name.isupper() else compression
    assert texts(write(tmp_path / (name + ending), COMPRESS[compression](LINES))) == TEXTS


def test_lz4(tmp_path):
    frame = pytest.importorskip("lz4.frame")
    assert texts(write(tmp_path / "a.jsonl.lz4", frame.compress(LINES))) == TEXTS
    with pytest.raises(DataError, match=r"a\.jsonl\.lz4: its compressed data is damaged or cut off"):
        texts(write(tmp_path / "a.jsonl.lz4", frame.compress(LINES * 99)[:-9]))
    with pytest.raises(DataError, match=r"a\.jsonl\.lz4: its compressed data is damaged or cut off"):
        texts(write(tmp_path / "a.jsonl.lz4", b"plain"))


def test_several_zstandard_frames_are_one_file(tmp_path):
    first, second = LINES[:37], LINES[37:]
    file = write(tmp_path / "a.jsonl.zst", zstd.compress(first) + zstd.compress(second))
    assert texts(file) == TEXTS


def test_the_last_line_may_lack_its_end(tmp_path):
    assert texts(write(tmp_path / "a.jsonl", LINES.rstrip(b"\n"))) == TEXTS


def test_lines_longer_than_a_chunk(tmp_path):
    long = "x" * (3 << 20)
    file = write(tmp_path / "a.jsonl", json.dumps({"text": long}).encode() + b"\n" + LINES)
    assert texts(file) == [long, *TEXTS]


@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("TSV", "\t")])
def test_separated_values(tmp_path, ending, delimiter):
    rows = [("id", "text"), ("1", "first"), ("2", "zweiter: äöü"), ("3", '"third\nwith a line end"')]
    content = "".join(f"{delimiter.join(row)}\n" for row in rows)
    found = [*read_documents([write(tmp_path / f"a.{ending}", content.encode())], "text")]
    assert [document.content for document in found] == TEXTS
    assert found[2].where == f"{tmp_path}/a.{ending}:5"


def test_a_plain_file_is_one_document_as_it_stands(tmp_path):
    assert texts(write(tmp_path / "a.py", b"a = 1\r\n\r\n")) == ["a = 1\r\n\r\n"]
    assert texts(write(tmp_path / "a.txt.gz", gzip.compress(b"hello\n"))) == ["hello\n"]
    assert texts(write(tmp_path / "empty.txt", b"")) == []


def test_folders_and_globs_are_sorted_and_nothing_is_read_twice(tmp_path):
    for name in ("b/2.txt", "a.txt", "b/1.txt", ".hidden/x.txt"):
        write(tmp_path / name, b"x")
    expected = [tmp_path / name for name in ("a.txt", "b/1.txt", "b/2.txt")]
    assert find_inputs([tmp_path]).inputs == expected
    assert find_inputs([str(tmp_path / "**/*.txt")]).inputs == expected
    assert find_inputs([tmp_path / "b/2.txt", tmp_path]).inputs == [expected[2], *expected[:2]]


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
            zstd.compress(LINES * 99)[:-5],
            r"a\.jsonl\.zst: its compressed data is damaged or cut off",
        ),
        ("a.jsonl.zst", b"plain", r"a\.jsonl\.zst: its compressed data is damaged or cut off"),
        ("a.png", b"\x89PNG\r\n\x1a\n", r"a\.png: is not UTF-8 text \(byte 0\).*glob"),
        ("a.json", b'{\n"text": "x"}', r"a\.json: is one JSON value.*Write a \.jsonl"),
        ("a.json", b'[{"text": "x"}]', r"a\.json: is one JSON value.*Write a \.jsonl"),
        ("a.json", b"plain", r"a\.json: is not JSON: its first line is no object"),
        ("a.json", LFS, r"a\.json: is a git-lfs pointer, .*`git lfs pull`"),
        ("a.txt", LFS, r"a\.txt: is a git-lfs pointer, .*`git lfs pull`$"),
        ("a.jsonl", LFS, r"a\.jsonl: is a git-lfs pointer"),
        ("a.jsonl", b"<!DOCTYPE html>\n", r"a\.jsonl: is an HTML page"),
        ("a.json", b"<!DOCTYPE html>\n", r"a\.json: is an HTML page"),
        ("a.parquet", LFS, r"a\.parquet: cannot be read as parquet: it is a git-lfs pointer"),
        ("a.parquet", b"", r"a\.parquet: cannot be read as parquet: it is empty"),
        ("a.csv", LFS, r"a\.csv: is a git-lfs pointer"),
        ("a.txt", b' [\n {"text":\n"x"}, {"text": "y"}]', r"a\.txt: is one JSON value"),
        ("part-0", b'{\n  "text": "x"\n}\n{', r"part-0: is one JSON value"),
        ("a.jsonl", b'{"a":' * 100_000, r"a\.jsonl:1: is JSON nested too deeply"),
        ("a.jsonl", b'{"text": null}\n', r"a\.jsonl:1: text: null: must be text\. --skip-null leaves out"),
        ("a.csv", b"text,b\nx,1,2\n", r"a\.csv:2: has more fields than the first line names"),
        ("a.csv", b"text\n\xff\n", r"a\.csv:2: is not UTF-8 text"),
        ("a.csv", b"body\nx\n", r"a\.csv:2: has no field 'text'\. It has body"),
        ("a.parquet", b"plain", r"a\.parquet: cannot be read as parquet: Parquet"),
        ("a.arrow", b"plain", r"a\.arrow: cannot be read as arrow"),
        ("a.parquet.gz", b"", r"a\.parquet\.gz: parquet is not read compressed with \.gz"),
        ("a.jsonl.xz", lzma.compress(LINES * 99)[:-9], r"a\.jsonl\.xz: its compressed data is damaged or cut off"),
        ("a.jsonl.xz", b"plain", r"a\.jsonl\.xz: its compressed data is damaged or cut off"),
        ("a.jsonl.bz2", bz2.compress(LINES * 99)[:-9], r"a\.jsonl\.bz2: its compressed data is damaged or cut off"),
        ("a.jsonl.bz2", b"plain", r"a\.jsonl\.bz2: its compressed data is damaged or cut off"),
        ("a.jsonl.gz", b"version https://git-lfs.github.com/spec/v1", r"a\.jsonl\.gz: .*it is a git-lfs pointer"),
        ("a.txt", lzma.compress(LINES), r"a\.txt: is compressed with xz, and its name does not say so"),
        ("a.tar", b"name" + bytes(600), r"a\.tar: is binary"),
    ],
)
def test_what_is_not_text_is_refused_by_name(tmp_path, name, data, message):
    with pytest.raises(DataError, match=message):
        texts(write(tmp_path / name, data))


def test_an_input_that_stands_for_nothing(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file"):
        find_inputs([tmp_path / "nowhere"])


@pytest.mark.parametrize("ending", [".gz", ".zst", ".xz", ".bz2"])
@pytest.mark.parametrize(("name", "message"), [("a.jsonl", ":1: has a line"), ("a.txt", "is one document")])
def test_memory_is_bounded_whatever_a_file_inflates_to(tmp_path, name, ending, message):
    file = write(tmp_path / (name + ending), COMPRESS[ending](b" " * (32 << 20)))
    tracemalloc.start()
    with pytest.raises(DataError, match=f"{message} of more than 1,048,576 bytes"):
        list(read_documents([file], "text", maximum_bytes=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_rows_without_a_text_are_dropped_and_counted_with_skip_null(tmp_path):
    lines = b'{"text": null}\n{"text": "x"}\n{"body": "y"}\n{"text": ""}\n'
    skipped = Counter()
    assert [d.content for d in read_documents([write(tmp_path / "a.jsonl", lines)], "text", skipped=skipped)] == ["x"]
    assert skipped == {"null_text": 2}
    with pytest.raises(DataError, match="text: 3: must be text"):
        list(read_documents([write(tmp_path / "b.jsonl", b'{"text": 3}')], "text", skipped=skipped))


def test_what_files_are_read_as_is_told(tmp_path):
    for name in ("a.jsonl", "B.JSONL", "part-0", "c.txt"):
        write(tmp_path / name, LINES if name != "c.txt" else b"x")
    for name in ("README.md", "a.jsonl.md5", "config.json"):
        write(tmp_path / name, b"{\n}")
    assert describe(find_inputs([tmp_path])) == [
        f"JSON lines: 3 files ({tmp_path}/B.JSONL, {tmp_path}/a.jsonl, {tmp_path}/part-0)",
        f"plain text: 1 file ({tmp_path}/c.txt)",
        f"skipped, as no data: 3 files ({tmp_path}/README.md, {tmp_path}/a.jsonl.md5, {tmp_path}/config.json). "
        "To read one, name it.",
    ]
    assert texts(tmp_path / "README.md") == ["{\n}"]


def test_other_than_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match=r"pipe\.jsonl: cannot be read: it is a named pipe"):
        find_inputs([tmp_path / "pipe.jsonl"])
    with pytest.raises(DataError, match="no such file"):
        find_inputs([tmp_path])
    for name in ("a\x00b", "x" * 5000):
        with pytest.raises(DataError, match=r"no such file|cannot be read"):
            find_inputs([name])


def test_a_file_name_that_is_not_utf_8(tmp_path):
    file = write(tmp_path / os.fsdecode(b"\xff.jsonl"), LINES)
    assert texts(*find_inputs([tmp_path]).inputs) == TEXTS
    assert [record.name for record in records([file])] == [str(file)]
