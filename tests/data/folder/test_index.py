"""Manifests and indexes that somebody else wrote: their hashes are right, what they say is not."""

import hashlib
import io
import json
import os
import shutil
import zipfile

import numpy as np
import pytest

from megatrain.base.errors import DataError
from megatrain.data.checks.inspection import inspect_data
from megatrain.data.checks.verify import find_damage
from megatrain.data.folder.manifest import read_manifest
from megatrain.data.loading.shards import PreparedData

HUGE = 10**15


def npy_header(fields):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


NPY_OF_7_PIB = npy_header({"descr": "<i4", "fortran_order": False, "shape": (HUGE,)})


@pytest.fixture
def copy(tmp_path, prepared):
    return shutil.copytree(prepared, tmp_path / "copy")


@pytest.fixture
def packed(tmp_path, corpus, tokenizer_folder, prepare_text):
    prepare_text(corpus, tmp_path / "packed", tokenizer_folder, pack="best_fit", sequence_length=64)
    return tmp_path / "packed"


def seal(folder, content):
    """Write a manifest with a hash that is right."""
    content.pop("manifest_hash", None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    content["manifest_hash"] = hashlib.sha256(canonical.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(content))


def set_field(folder, field, value):
    content = json.loads((folder / "manifest.json").read_text())
    *path, last = field.split(".")
    inner = content
    for key in path:
        inner = inner[int(key) if isinstance(inner, list) else key]
    if value is DELETE:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    seal(folder, content)


def set_index(folder, content: bytes):
    (folder / "index.npz").write_bytes(content)
    set_field(folder, "index_sha256", hashlib.sha256(content).hexdigest())


def columns_of(folder):
    with np.load(folder / "index.npz") as columns:
        return dict(columns)


def npz(columns, save=np.savez) -> bytes:
    file = io.BytesIO()
    save(file, **columns)
    return file.getvalue()


def assert_refused(folder, message=""):
    """Every reader ends in one error that names the file."""
    for read in (PreparedData, inspect_data, lambda folder: list(find_damage(folder))):
        with pytest.raises(DataError, match=rf"(manifest\.json|index\.npz): .*{message}") as raised:
            read(folder)
        assert len(str(raised.value)) < 600


class DELETE:
    """No value at all."""


@pytest.mark.parametrize("value", [DELETE, None, -1, HUGE * 10, 10**400, 1.5, "3", [], {}, True, {"a": 1}, "\x1b[2J"])
@pytest.mark.parametrize(
    "field",
    [
        *("tokens", "documents", "blocks", "shards", "recipe", "index_sha256", "left_out", "packed", "format_version"),
        *("recipe.block_tokens", "recipe.shard_blocks", "recipe.vocab_size", "recipe.eos_id", "recipe.dtype"),
        *("recipe.sources", "recipe.tokenizer_sha256", "recipe.packing", "shards.0", "shards.0.bytes", "shards.0.name"),
        *(
            "recipe.part",
            "recipe.holdout",
            "recipe.versions",
            "recipe.selection",
            "recipe.text_field",
            "shards.0.sha256",
        ),
    ],
)
def test_fields_of_another_type_or_out_of_bounds(copy, field, value):
    allowed = {"left_out": {}, "recipe.versions": {}, "recipe.selection": {}}
    if (
        (field in ("packed", "recipe.packing") and value in (None, {}, []) and value is not DELETE)
        or (field in allowed and value in ({}, {"a": 1}))
        or (field == "recipe.text_field" and isinstance(value, str))
        or (field == "recipe.versions" and value == {"a": 1})
        or (field == "shards.0" and value is DELETE)
    ):
        pytest.skip("may be so, or is seen below")
    set_field(copy, field, value)
    with pytest.raises(DataError, match=r"manifest\.json: ") as raised:
        read_manifest(copy)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", 3 * 10**6, "blocks: "),
        ("blocks", 1000, "blocks: 1000: should be"),
        ("documents", 10**9, "documents: "),
        ("shards", [], "shards: 0 of them"),
        ("shards.0.name", "../x", "shards.0.name"),
        ("shards.0.name", "/etc/passwd", "shards.0.name"),
        ("shards.0.bytes", 10, "offsets of block 0"),
        ("recipe.dtype", "float64", "recipe.dtype: 'float64'"),
        ("recipe.dtype", "uint32", "offsets of block 0"),
        ("recipe.eos_id", 400, "recipe.eos_id: 400: is outside"),
        ("recipe.vocab_size", 70_000, "uint16: does not hold a vocabulary of 70000"),
        ("recipe.block_tokens", 2**50, "recipe.block_tokens: 1125899906842624: Input should be less than"),
        ("recipe.block_tokens", 255, "blocks|tokens of block"),
        ("recipe.unknown", 1, "recipe.unknown"),
        ("packed", {"rows": 5}, "packed: must be there where recipe.packing is|was damaged or edited"),
        ("recipe.packing", {"sequence_length": 64, "window_tokens": 9}, "packed: must be there"),
        ("shards.0.sha256", "g" * 64, "shards.0.sha256"),
        ("index_sha256", "0" * 65, "index_sha256"),
        ("holdout", 0, "holdout"),
        ("recipe.holdout", 0, "was damaged or edited"),
    ],
)
def test_numbers_that_contradict_each_other(copy, field, value, message):
    set_field(copy, field, value)
    assert_refused(copy, message)


@pytest.mark.parametrize("field", ["rows", "pieces", "targets", "padding"])
@pytest.mark.parametrize("change", [-1, 1, 10**9])
def test_counts_of_packed_rows(packed, field, change):
    assert list(find_damage(packed)) == []
    value = json.loads((packed / "manifest.json").read_text())["packed"][field]
    set_field(packed, f"packed.{field}", max(0, value + change))
    assert_refused(packed, "packed|blocks")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 10**6, b'{"a": NaN}', b"9" * 5000, b"{}"]
)
def test_manifests_that_are_none(copy, content):
    (copy / "manifest.json").write_bytes(content)
    assert_refused(copy)


@pytest.mark.parametrize("name", ["manifest.json", "index.npz"])
def test_pipes_and_folders_in_place_of_files(copy, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert_refused(copy, "it is a named pipe")
    (copy / name).unlink()
    (copy / name).mkdir()
    assert_refused(copy, "it is a folder")


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("shard", lambda a: a + 9),
        ("shard", lambda a: a - 1),
        ("shard", lambda a: a[::-1]),
        ("offset", lambda a: a - 2**40),
        ("offset", lambda a: np.full_like(a, 2**62)),
        ("offset", lambda a: a[::-1]),
        ("offset", lambda a: a + 512),
        ("ends_offset", lambda a: a * 0 - 1),
        ("ends_offset", lambda a: np.full_like(a, 2**63 - 1)),
        ("tokens", lambda a: a + 1),
        ("tokens", lambda a: a - a),
        ("tokens", lambda a: a - 2**30),
        ("ends", lambda a: np.full_like(a, 2**31 - 1)),
        ("ends", lambda a: -a),
        ("ends", lambda a: a * 0),
        ("ends", lambda a: a + 1),
        ("hash", lambda a: a[:, :4]),
        ("hash", lambda a: a.astype(np.float32)),
        ("targets", lambda a: np.ones(5, np.uint8)),
        *((name, lambda a: a[:0]) for name in ("shard", "offset", "tokens", "ends_offset", "ends", "hash")),
        *((name, lambda a: a.astype(float)) for name in ("shard", "offset", "tokens", "ends_offset", "ends", "hash")),
        *((name, lambda a: a.astype(">i8")) for name in ("shard", "offset", "tokens", "ends_offset", "ends")),
        *((name, lambda a: np.asfortranarray(np.stack([a, a]))) for name in ("shard", "offset", "tokens")),
        *((name, lambda a: np.array(str(a))) for name in ("shard", "hash")),
        *((name, None) for name in ("shard", "offset", "tokens", "ends_offset", "ends", "hash", "targets")),
    ],
)
def test_columns_that_do_not_name_the_blocks(copy, column, change):
    columns = columns_of(copy)
    columns[column] = change and change(columns[column])
    set_index(copy, npz({name: value for name, value in columns.items() if value is not None}))
    assert_refused(copy)


@pytest.mark.parametrize("change", [lambda a: a + 1, lambda a: a * 0, lambda a: a[:-1], lambda a: a.astype(np.int8)])
def test_targets_of_packed_rows(packed, change):
    columns = columns_of(packed)
    set_index(packed, npz(columns | {"targets": change(columns["targets"])}))
    assert_refused(packed)


def test_archives_that_take_more_memory_than_they_are(copy):
    columns = columns_of(copy)
    set_index(copy, npz(columns | {"shard": np.zeros(10**7, np.int32)}, save=np.savez_compressed))
    assert_refused(copy, "at most|compressed")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("shard.npy", NPY_OF_7_PIB)
    set_index(copy, file.getvalue())
    assert_refused(copy, "has the shape")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00", b"[" * 9999])
def test_indexes_that_are_none(copy, content):
    set_index(copy, content)
    assert_refused(copy, "is damaged")


def test_an_index_damaged_anywhere_is_refused_or_its_hashes_differ(copy):
    content = (copy / "index.npz").read_bytes()
    for at in range(0, len(content), 61):
        set_index(copy, content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            assert list(find_damage(copy)) == [] or "the hash of this block differs" in next(find_damage(copy))
        except DataError as error:
            assert "index.npz" in str(error)  # noqa: PT017


def test_hashes_of_other_blocks_are_found_by_verify(copy):
    columns = columns_of(copy)
    columns["hash"][2] ^= 1
    set_index(copy, npz(columns))
    (line,) = find_damage(copy)
    assert "shard-00000.tar: 00000002.tokens at byte" in line
    assert "the hash of this block differs" in line
