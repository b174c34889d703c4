"""Files of others: regular files only, bounded, and a message that names the file."""

import os
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from megatrain.base import files
from megatrain.base.errors import CheckpointError, DataError


def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe: cannot be read: it is a named pipe"):
        files.read_bytes(tmp_path / "pipe", limit=10, error=DataError)


@pytest.mark.parametrize("name", ["absent", "a\0b", "x" * 5000, "\ud83d"])
def test_a_name_that_cannot_be_opened_is_the_callers_kind_of_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        files.read_bytes(tmp_path / name, limit=10, error=CheckpointError)


def test_a_device_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a device"):
        files.read_bytes(Path("/dev/zero"), limit=10, error=DataError)
    with pytest.raises(DataError, match="a folder"):
        files.read_bytes(tmp_path, limit=10, error=DataError)


def test_a_file_beyond_the_limit_is_refused_by_its_size(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with open(large, "wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would take a terabyte
    with pytest.raises(DataError, match=r"1,099,511,627,776 bytes; at most 100 are read"):
        files.read_bytes(large, limit=100, error=DataError)
    large.write_bytes(b"x" * 100)
    assert files.read_bytes(large, limit=100, error=DataError) == b"x" * 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"", "it is empty"),
        (b"NaN", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"9" * 5000, "is not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><p>", "an HTML page"),
    ],
)
def test_what_is_not_json_is_named_with_its_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        files.read_json(path, error=DataError)
    assert str(error.value).startswith(str(path))


class _Count(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    count: Annotated[int, Field(ge=0, le=10)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"count": "1"}, r"file: count: '1': .*valid integer"),
        ({"count": 11}, r"file: count: 11: .*less than or equal to 10"),
        ({}, r"file: count: Field required"),
        ([], r"file: list: .*"),
        ({"count": True, "more": 1}, r"file: count: True: .* \(1 more\)"),
    ],
)
def test_a_model_that_does_not_fit_names_field_and_value(value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        files.parse_model(_Count, value, "file", CheckpointError)


def test_content_is_recognised_by_its_first_bytes() -> None:
    assert files.recognise(b"\x1f\x8b\x08") == "compressed with gzip"
    assert files.recognise(b"  \n<html>") == "an HTML page: the download failed or needs a login"
    assert files.recognise(b'{"a": 1}') is None


def test_more_values_than_a_file_may_hold_are_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[" + b"0," * 1_000_001 + b"0]")
    with pytest.raises(DataError, match=r"a\.json: has 1,000,001 commas; at most 1,000,000 values"):
        files.read_json(tmp_path / "a.json", error=DataError)


def test_sha256_of_a_file_and_of_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "file", DataError).startswith("ba7816bf")
    with pytest.raises(CheckpointError, match="absent: cannot be read"):
        files.sha256_file(tmp_path / "absent", CheckpointError)
