"""What a data file is: by its ending, whatever its case; by its first line where the ending does not say."""

import json
import re
from enum import StrEnum
from pathlib import Path

from megatrain.base.errors import DataError
from megatrain.base.files import recognise
from megatrain.data.text.compression import open_data, split_compression


class Kind(StrEnum):
    JSON_LINES = "JSON lines"
    PARQUET = "parquet"
    ARROW = "arrow"
    CSV = "csv"
    TSV = "tsv"
    MEGATRON = "Megatron-LM tokens"
    TEXT = "plain text"


_BY_ENDING = {
    ".jsonl": Kind.JSON_LINES,
    ".jsonlines": Kind.JSON_LINES,
    ".ndjson": Kind.JSON_LINES,
    ".parquet": Kind.PARQUET,
    ".arrow": Kind.ARROW,
    ".csv": Kind.CSV,
    ".tsv": Kind.TSV,
    ".idx": Kind.MEGATRON,
}
_SEEKING = (Kind.PARQUET, Kind.ARROW, Kind.MEGATRON)  # not read from front to back
_SHARD = re.compile(r"-[0-9]+-of-[0-9]+\Z")  # train.jsonl-00000-of-00002
_HEAD_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_JSON_OBJECT = re.compile(rb'\s*(\[\s*)?\{\s*"(\\.|[^"\\])*"\s*:', re.DOTALL)  # how one begins, or a list of them


def kind_of(file: Path) -> Kind:
    """What a file is read as.

    Raises:
        DataError: it can be read as none of them: one JSON value for all documents, something binary, or the like.
    """
    name, compression = split_compression(file.name)
    ending = Path(_SHARD.sub("", name)).suffix
    kind = _BY_ENDING.get(ending) or _by_content(file, ending, compression)
    if compression and kind in _SEEKING:
        raise DataError(f"{file}: {kind} is not read compressed with {compression}: decompress it first")
    return kind


def _by_content(file: Path, ending: str, compression: str) -> Kind:
    with open_data(file) as (_, stream):
        head = stream.read(_HEAD_BYTES).removeprefix(_BOM)
        content = head.lstrip()
        line = content.split(b"\n", 1)[0]
        if _JSON_OBJECT.match(content) and len(line) == len(content):  # a first line longer than the head?
            line += stream.readline(_HEAD_BYTES << 5)
    if content.startswith(b"PAR1"):
        return Kind.PARQUET
    if content.startswith(b"ARROW1"):
        return Kind.ARROW
    if _is_object(line):
        return Kind.JSON_LINES
    is_page = content.startswith(b"<") and ending != ".json"  # a page that is meant is text
    known = None if is_page or not content else recognise(head)
    if known:
        way_out = "" if ":" in known else ", and its name does not say so: give it its ending, or leave it out"
        raise DataError(f"{file}: is {known}{way_out}")
    if _JSON_OBJECT.match(content) or (ending == ".json" and content.startswith((b"{", b"["))):
        raise DataError(
            f"{file}: is one JSON value, not an object per line, which is neither text nor can be streamed. "
            "Write a .jsonl (for a list: jq -c '.[]'), or leave the file out."
        )
    if content and ending == ".json":
        raise DataError(
            f"{file}: is not JSON: its first line is no object. Name it .txt if it is text, or leave it out"
        )
    if b"\x00" in head:
        raise DataError(f"{file}: is binary, not text (it holds NUL bytes). {advice(file)}")
    return Kind.TEXT


def advice(file: Path) -> str:
    """How to leave a file out."""
    return f"Leave it out: name the inputs with a glob such as '{file.parent}/**/*.txt'."


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
