"""Third-party tar files, as webdataset itself writes them."""

import gc
import io
import json
import os

import numpy as np
import pytest
import torch
import webdataset

from megatrain.base.errors import DataError, PreflightError
from megatrain.config import DataSection, Source
from megatrain.data.loading.sequential import SequentialLoader, pack
from tests.data.file_server import FileServer

SHARDS = 6


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(SHARDS):
        with webdataset.TarWriter(str(folder / f"{shard:03d}.tar")) as writer:
            for number in range(20):
                text = f"shard {shard} sample {number} " * 5
                sample = {"txt": text} if shard % 2 else {"json": {"text": text, "source": "x"}}
                writer.write({"__key__": f"{shard:03d}/{number:04d}", **sample})
    return folder


@pytest.fixture
def make(tars, tokenizer):
    opened = []

    def make(path=None, *, ranks=2, rank=0, micro_batch_size=2, **data):
        section = DataSection(
            sequence_length=32,
            train=(Source(path=path or f"{tars}/{{000..005}}.tar", format="webdataset"),),
            **data,
        )
        share = {"global_batch_size": 8, "micro_batch_size": micro_batch_size, "data_rank": rank, "data_size": ranks}
        opened.append(SequentialLoader(section, tokenizer, **share, seed=1))
        return opened[-1]

    yield make
    for loader in opened:
        loader.close()


def tokens(loader, steps):
    return torch.cat([b.input_ids for _ in range(steps) for b in loader.next().micro_batches])


def test_rows_are_the_texts_one_behind_the_other(make, tokenizer):
    got = tokens(make(ranks=1, micro_batch_size=8), 6).flatten().tolist()
    texts = [f"shard 0 sample {number} " * 5 for number in range(20)]
    texts += [f"shard 1 sample {number} " * 5 for number in range(20)]
    expected = [id_ for text in texts for id_ in (*tokenizer.encode(text), tokenizer.eos_id)]
    assert got == expected[: len(got)]


def test_ranks_read_shards_of_their_own_and_start_again_when_they_end(make, tokenizer):
    for rank in range(2):
        text = tokenizer.decode(tokens(make(rank=rank), 120).flatten().tolist())
        for shard in range(SHARDS):
            assert (f"shard {shard} sample 3" in text) == (shard % 2 == rank)
        assert text.count(f"shard {rank} sample 7 " * 5) > 1


@pytest.mark.parametrize("path", ["*.tar", "{000..005}.tar"])
def test_patterns_and_http(make, tars, path):
    expected = tokens(make(), 3)
    assert torch.equal(tokens(make(f"{tars}/{path}"), 3), expected)
    if "{" in path:
        server = FileServer(tars, ranges=False)
        assert torch.equal(tokens(make(f"{server.address}/{path}"), 3), expected)
        server.close()


def test_resume_with_as_many_ranks_is_exact(make):
    whole = tokens(make(), 9)
    before = make()
    tokens(before, 4)
    state = json.loads(json.dumps(before.state_dict()))
    assert state == make(rank=1).state_dict() | {"position": 32}
    after = make(micro_batch_size=4)
    assert after.load_state_dict(state) == []
    assert torch.equal(tokens(after, 5), whole[16:])


def test_another_number_of_ranks_is_refused_with_the_reason(make):
    state = make().state_dict()
    with pytest.raises(DataError, match=r"sequential_ranks was 2, is 1.*fixed number of ranks.*prepare the data"):
        make(ranks=1).load_state_dict(state)


def test_fewer_shards_than_ranks(make, tars):
    with pytest.raises(DataError, match=r"000\.tar: has 1 shards for 2 data-parallel ranks"):
        make(f"{tars}/000.tar")


def test_token_ids(make, tmp_path, tokenizer):
    with webdataset.TarWriter(str(tmp_path / "ids.tar")) as writer:
        for number in range(10):
            buffer = io.BytesIO()
            np.save(buffer, np.full(40, number))
            writer.write({"__key__": f"{number}", "npy": buffer.getvalue()})
    got = tokens(make(str(tmp_path / "ids.tar"), ranks=1, micro_batch_size=8), 1).flatten().tolist()
    assert got[:82] == [0] * 40 + [tokenizer.eos_id] + [1] * 40 + [tokenizer.eos_id]


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write(path, **sample):
    with webdataset.TarWriter(str(path)) as writer:
        writer.write({"__key__": "k1", **sample})
    return str(path)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"jpg": b"x"}, r"sample k1: has no txt, text, json with a text, or npy"),
        ({"json": {"body": "x"}}, r"sample k1: has no txt, .*KeyError\('text'\)"),
        ({"txt": b"\xff\xfe"}, r"sample k1: has no txt, .*UnicodeDecodeError"),
        ({"json": b"[" * 100_000}, r"sample k1: is JSON nested too deeply"),
        ({"json": b"[]"}, r"sample k1: has no txt, .*TypeError"),
        ({"json": b'{"text": 3}'}, r"sample k1: must have a text"),
        ({"json": b'{"text": "\\ud800"}'}, r"sample k1: .*cannot encode the text"),
        ({"npy": npy(np.array([1.5, 2]))}, r"sample k1: npy: is of shape \(2,\) and type float64"),
        ({"npy": npy(np.array(["a"]))}, r"sample k1: .*holds <U1"),
        ({"npy": npy(np.array([[1]]))}, r"sample k1: npy: is of shape \(1, 1\)"),
        ({"npy": npy(np.array([-1]))}, r"sample k1: npy: must be a list of ids below"),
        ({"npy": npy(np.array([2**63], np.uint64))}, r"sample k1: npy: must be a list of ids below"),
        ({"npy": npy(np.array([1]))[:-1]}, r"sample k1: .*announces 1 numbers"),
        ({"npy": npy(np.array([1])).replace(b"(1,), }" + b" " * 14, b"(1000000000000000,), }"[:21])}, r"sample k1: "),
        ({"npy": b"\x93NUMPY"}, r"sample k1: .*is not a \.npy array"),
    ],
)
def test_a_sample_without_text_is_named_not_skipped(make, tmp_path, sample, message):
    gc.collect()  # what other tests left must not end within the recursion of this one
    with pytest.raises(DataError, match=message):
        make(write(tmp_path / "x.tar", **sample), ranks=1).next()


def test_a_state_that_is_none(make):
    loader = make()
    for position in (None, "3", -1, 10**30, 1.5):
        with pytest.raises(DataError, match="its position is"):
            loader.load_state_dict(loader.state_dict() | {"position": position})


def test_a_named_pipe_and_a_library_that_is_missing(make, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match=r"pipe\.tar: cannot be read: it is a named pipe"):
        make(str(tmp_path / "pipe.tar"), ranks=1).next()

    def missing(*arguments):
        raise ImportError("Install s3fs")

    monkeypatch.setattr("fsspec.open", missing)
    with pytest.raises(PreflightError, match=r"s3://a/b\.tar: cannot be read: .*pip install 'megatrain\[remote\]'"):
        make("s3://a/b.tar", ranks=1).next()


def test_damage_is_named(make, tars, tmp_path):
    cut = tmp_path / "cut.tar"
    cut.write_bytes((tars / "000.tar").read_bytes()[:1000])
    with pytest.raises(DataError, match=r"cut\.tar: cannot be read"):
        make(str(cut), ranks=1).next()
    (tmp_path / "no.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"no\.tar: cannot be read"):
        make(str(tmp_path / "no.tar"), ranks=1).next()
    with pytest.raises(DataError, match=r"none\.tar: cannot be read"):
        make(str(tmp_path / "none.tar"), ranks=1).next()


def test_a_pipe_runs_only_where_it_is_allowed(make, tars, tmp_path):
    marker = tmp_path / "ran"
    pipe = f"pipe:touch {marker}; cat {tars}/000.tar"
    with pytest.raises(DataError, match=r"runs a command; set data\.allow_pipe: true"):
        make(pipe, ranks=1).next()
    assert not marker.exists()
    expected = tokens(make(f"{tars}/000.tar", ranks=1), 2)
    assert torch.equal(tokens(make(pipe, ranks=1, allow_pipe=True), 2), expected)
    assert marker.exists()


def test_packing_keeps_document_ends():
    rows = list(pack(iter([np.arange(3), np.arange(10, 16), np.arange(20, 24)]), 4))
    assert [row.tokens.tolist() for row in rows] == [[0, 1, 2, 10, 11], [11, 12, 13, 14, 15], [15, 20, 21, 22, 23]]
    assert [row.ends.tolist() for row in rows] == [[3], [], [1]]
