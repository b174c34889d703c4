import shutil

import pytest

from megatrain.base.errors import DataError
from megatrain.data.checks.verify import find_damage
from megatrain.data.folder.index import read_index
from megatrain.data.folder.manifest import read_manifest


@pytest.fixture
def copy(tmp_path, prepared):
    return shutil.copytree(prepared, tmp_path / "copy")


def flip(file, position):
    with open(file, "r+b") as handle:
        handle.seek(position)
        byte = handle.read(1)[0]
        handle.seek(position)
        handle.write(bytes([byte ^ 1]))


def test_whole_data_has_no_damage(prepared):
    assert list(find_damage(prepared)) == []


@pytest.mark.parametrize("column", ["offset", "ends_offset"])
def test_one_flipped_bit_in_a_block_is_found_and_named(copy, column):
    index = read_index(copy, read_manifest(copy))
    flip(copy / "shard-00001.tar", int(getattr(index, column)[6]))
    (line,) = find_damage(copy)
    assert "shard-00001.tar: 00000006.tokens at byte" in line
    assert "hash of this block differs" in line


def test_a_flipped_bit_in_a_tar_header(copy):
    flip(copy / "shard-00002.tar", 3)
    assert list(find_damage(copy)) == [f"{copy}/shard-00002.tar: its SHA-256 differs, outside the blocks"]


def test_every_bad_file_is_named(copy):
    flip(copy / "tokenizer.json", 50)
    (copy / "shard-00000.tar").unlink()
    with open(copy / "shard-00002.tar", "ab") as file:
        file.write(b"x")
    lines = list(find_damage(copy))
    assert [line.split(": ")[0].rsplit("/")[-1] for line in lines] == [
        "tokenizer.json",
        "shard-00000.tar",
        "shard-00002.tar",
    ]


def test_a_damaged_index(copy):
    flip(copy / "index.npz", 200)
    with pytest.raises(DataError, match=r"index\.npz: is damaged"):
        list(find_damage(copy))
