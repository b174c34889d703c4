import os
import shutil
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megatrain.base.errors import DataError
from megatrain.config import ReadingSection
from megatrain.data.loading.shards import PreparedData
from megatrain.data.text.documents import read_documents


@pytest.fixture
def data(prepared):
    opened = PreparedData(prepared)
    yield opened
    opened.close()


@pytest.fixture
def stream(corpus, tokenizer):
    """The tokens of the corpus as they should be, and where its documents end."""
    ids = [[*tokenizer.encode(document.content), tokenizer.eos_id] for document in read_documents([corpus], "text")]
    return np.concatenate(ids), np.cumsum([len(document) for document in ids])


def test_the_blocks_hold_the_whole_stream_and_its_document_ends(data, stream):
    tokens, ends = stream
    blocks = [data.block_tokens(block) for block in range(len(data.index))]
    assert np.array_equal(np.concatenate([blocks[0], *(block[1:] for block in blocks[1:])]), tokens)
    assert all(before[-1] == after[0] for before, after in pairwise(blocks))  # lookahead
    found = np.unique(np.concatenate([256 * b + data.block_ends(b) for b in range(len(blocks))]))
    assert np.array_equal(found, ends)
    assert data.manifest.tokens == len(tokens)


@pytest.mark.parametrize("length", [32, 256])
def test_rows_are_slices_of_the_stream(data, stream, length):
    tokens, ends = stream
    rows = data.manifest.rows(length)
    for number in range(rows):
        block, row = divmod(number, 256 // length)
        got, got_ends = data.read_row(block, row, length)
        start = number * length
        assert np.array_equal(got, tokens[start : start + length + 1])
        inside = ends[(ends > start) & (ends <= start + length)] - start
        assert got_ends.tolist() == inside.tolist()
    assert rows == (len(tokens) - 1) // length  # only a tail shorter than a row goes unused


def test_few_shards_are_open_at_once(prepared):
    data = PreparedData(prepared, open_files=2)
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    assert len(data.manifest.shards) > 3
    for block in [*range(len(data.index)), 0]:
        data.read_tokens(block, 0, 16)
    assert len(list(descriptors.iterdir())) == before + 2
    data.close()
    assert len(list(descriptors.iterdir())) == before


@pytest.fixture
def copy(tmp_path, prepared):
    return shutil.copytree(prepared, tmp_path / "copy")


def test_a_missing_or_short_shard_is_found_at_opening(copy):
    shard = copy / "shard-00001.tar"
    with open(shard, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"shard-00001\.tar: has 1,000 bytes, not [\d,]+"):
        PreparedData(copy)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-00001\.tar: is missing"):
        PreparedData(copy)


def test_an_index_of_other_data_is_found_at_opening(copy, prepared_other):
    shutil.copy(prepared_other / "index.npz", copy / "index.npz")
    with pytest.raises(DataError, match=r"index\.npz: is damaged"):
        PreparedData(copy)


def test_a_shard_cut_off_while_it_is_read(copy):
    data = PreparedData(copy)
    (copy / "shard-00000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"shard-00000\.tar: changed while it was read: it has 0 bytes, had [\d,]+"):
        data.read_tokens(0, 0, 32)
    (copy / "shard-00001.tar").unlink()
    with pytest.raises(
        DataError, match=r"shard-00001\.tar: 00000004\.tokens at byte 512: cannot be read: No such file"
    ):
        data.read_tokens(4, 0, 32)
    data.close()


def test_a_token_outside_the_vocabulary_stops_before_the_model_sees_it(copy, data):
    with open(copy / "shard-00000.tar", "r+b") as file:
        file.seek(int(data.index.offset[1]) + 5)
        file.write(b"\xff")
    damaged = PreparedData(copy)
    damaged.read_tokens(0, 0, 32)
    with pytest.raises(
        DataError, match=r"00000001\.tokens at byte \d+: holds token \d+, outside the vocabulary of 400"
    ):
        damaged.read_tokens(1, 0, 32)
    damaged.close()


def overwrite(shard: Path) -> None:
    with open(shard, "r+b") as file:
        file.write(bytes(shard.stat().st_size))


def replace(shard: Path) -> None:
    shard.with_suffix(".new").write_bytes(bytes(shard.stat().st_size))
    shard.with_suffix(".new").replace(shard)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (overwrite, "it was written to, and it no longer has the SHA-256"),
        (replace, "it was replaced by another file, and it no longer has the SHA-256"),
        (lambda shard: os.truncate(shard, 700), "it has 700 bytes, had 20,480, and"),
        (Path.unlink, "was taken away while it was read: No such file"),
    ],
)
@pytest.mark.parametrize("verify_blocks", [False, True])
def test_a_shard_that_changes_while_a_job_reads_it(copy, change, message, verify_blocks, monkeypatch):
    monkeypatch.setattr("megatrain.data.loading.shards.CHECK_SECONDS", 0.0001)
    data = PreparedData(copy, ReadingSection(verify_blocks=verify_blocks))
    data.read_tokens(0, 0, 32)
    change(copy / "shard-00000.tar")
    time.sleep(0.001)
    with pytest.raises(DataError, match=rf"shard-00000\.tar: .*{message}"):
        data.read_tokens(0, 0, 32)
    data.read_tokens(4, 0, 32)
    data.close()


def test_a_shard_that_is_touched_or_copied_again_is_the_same(copy):
    data = PreparedData(copy, ReadingSection(verify_blocks=True))
    before = data.read_tokens(0, 0, 32).tolist()
    shard = copy / "shard-00000.tar"
    os.utime(shard, (1, 1))
    assert data.read_tokens(0, 0, 32).tolist() == before
    shutil.copy(shard, copy / "again")
    (copy / "again").replace(shard)
    assert data.read_tokens(0, 0, 32).tolist() == before
    data.close()


def test_looking_for_changes_costs_a_bounded_number_of_looks(copy, monkeypatch):
    data = PreparedData(copy)
    looks = []
    monkeypatch.setattr(data._storage, "state_of", lambda shard, file: looks.append(shard) or file.state)
    monkeypatch.setattr("megatrain.data.folder.storage._CHECKS_PER_READ", 2)
    blocks = np.arange(0, len(data.index), 4)
    for _ in range(3):
        data.read_rows(blocks, np.zeros_like(blocks), 32, with_ends=False)
    assert looks == [0, 1, 2, 3, 4, 5][: len(looks)]
    assert len(looks) == 6
    data.close()


def test_a_named_pipe_in_place_of_a_shard(copy):
    (copy / "shard-00001.tar").unlink()
    os.mkfifo(copy / "shard-00001.tar")
    with pytest.raises(DataError, match=r"shard-00001\.tar: is no regular file"):
        PreparedData(copy)
