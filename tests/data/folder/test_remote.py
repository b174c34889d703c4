"""Shards behind http and S3, from a server on this machine."""

import json
import shutil
import time

import pytest
import torch

from megatrain.base.errors import DataError, PreflightError
from megatrain.config import ReadingSection, Source
from megatrain.data.loading.shards import PreparedData
from tests.data.file_server import FileServer

pytest.importorskip("aiohttp")
PATIENT = {"attempts": 3, "timeout_seconds": 5.0, "hedge_seconds": 5.0}


@pytest.fixture
def serve(tmp_path, prepared):
    servers = []

    def start(**options) -> FileServer:
        root = tmp_path / f"served-{len(servers)}"
        shutil.copytree(prepared, root / "bucket" / "a")
        servers.append(FileServer(root, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def first_steps(make_loader, path: str, steps: int = 6, **reading) -> torch.Tensor:
    loader = make_loader(train=(Source(path=path),), reading=ReadingSection(**PATIENT | reading))
    found = [batch for _ in range(steps) for batch in loader.next().micro_batches]
    loader.close()
    return torch.cat([torch.stack([b.input_ids, b.labels, b.document_ids.long()]) for b in found], dim=1)


def test_http_gives_what_the_folder_gives(make_loader, prepared, serve):
    server = serve()
    expected = first_steps(make_loader, str(prepared))
    assert torch.equal(first_steps(make_loader, f"{server.address}/bucket/a", threads=3), expected)
    shard_requests = [wanted for path, wanted in server.requests if path.endswith(".tar")]
    assert shard_requests
    assert None not in shard_requests  # ranges only


def test_an_epoch_is_sent_hardly_more_than_once(make_loader, serve):
    server = serve()
    data = PreparedData(server.folder / "bucket" / "a")
    rows = data.manifest.rows(64)
    loader = make_loader(
        train=(Source(path=f"{server.address}/bucket/a"),),
        sequence_length=64,
        global_batch_size=rows,
        micro_batch_size=rows,
        prefetch=1,
        reading=ReadingSection(**PATIENT),
    )
    server.sent = 0
    loader._stream.read(torch.arange(rows).numpy())
    payload = rows * 64 * 2 + int(data.index.ends.sum()) * 4
    assert server.sent <= 1.05 * payload


@pytest.mark.parametrize("failure", [503, 404, 0.0])
def test_a_read_that_fails_is_tried_again(make_loader, prepared, serve, failure):
    server = serve()
    server.misbehave = lambda path, number: failure if number % 3 == 0 else None
    expected = first_steps(make_loader, str(prepared), steps=2)
    assert torch.equal(first_steps(make_loader, f"{server.address}/bucket/a", steps=2), expected)


def test_a_server_that_stays_broken_is_named_with_shard_member_and_offset(make_loader, serve):
    server = serve()
    server.misbehave = lambda path, number: 503
    with pytest.raises(DataError, match=r"/bucket/a/shard-\d+\.tar: \d+\.tokens at byte \d+: cannot be read: .*503.*"):
        first_steps(make_loader, f"{server.address}/bucket/a", attempts=2)


def test_a_server_that_hangs_ends_in_an_error_not_a_hang(make_loader, serve):
    server = serve()
    server.misbehave = lambda path, number: 4.0
    started = time.monotonic()
    with pytest.raises(DataError, match=r"no answer within 0\.2 s \(2 attempts\)"):
        first_steps(make_loader, f"{server.address}/bucket/a", attempts=2, timeout_seconds=0.2)
    assert time.monotonic() - started < 4


def test_a_slow_answer_is_overtaken_by_a_second_request(make_loader, prepared, serve):
    server = serve()
    server.misbehave = lambda path, number: 4.0 if number == 2 else None
    started = time.monotonic()
    got = first_steps(make_loader, f"{server.address}/bucket/a", hedge_seconds=0.1)
    assert time.monotonic() - started < 3
    assert torch.equal(got, first_steps(make_loader, str(prepared)))


def test_without_ranges_whole_shards_are_copied_and_kept_within_bounds(make_loader, prepared, serve, tmp_path):
    server = serve(ranges=False)
    cache = tmp_path / "cache"
    address = f"{server.address}/bucket/a"
    expected = first_steps(make_loader, str(prepared))
    assert torch.equal(first_steps(make_loader, address, cache=str(cache)), expected)
    assert torch.equal(first_steps(make_loader, address, cache=str(cache)), expected)
    whole = [path for path, _ in server.requests if path.endswith(".tar")]
    assert len(whole) == len(set(whole)) > 3, "each is sent once, and kept for the second time"
    assert not list(cache.rglob("*.tmp"))


def test_the_least_recently_used_copies_make_room(serve, tmp_path):
    server = serve(ranges=False)
    shutil.copytree(server.folder / "bucket" / "a", tmp_path / "big")
    reading = ReadingSection(**PATIENT, cache=str(tmp_path / "cache"), cache_mebibytes=1)
    data = PreparedData(f"{server.address}/bucket/a", reading, open_files=1)
    size = data.manifest.shards[0].bytes
    data._storage._limit = 3 * size  # shards of a test are far below a mebibyte
    for block in [*range(len(data.index)), 0]:
        data.read_row(block, 0, 32)
        assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.tar")) <= 3 * size
    shards = [path for path, _ in server.requests if path.endswith(".tar")]
    assert len(shards) == len(data.manifest.shards) + 1, "the first one was let go, and fetched again"


def test_a_copy_that_is_not_what_the_manifest_says_is_refused(make_loader, serve, tmp_path):
    server = serve(ranges=False)
    for shard in (server.folder / "bucket" / "a").glob("*.tar"):
        damaged = bytearray(shard.read_bytes())
        damaged[600] ^= 1
        shard.write_bytes(damaged)
    with pytest.raises(DataError, match=r"shard-\d+\.tar: .* checksum mismatch"):
        first_steps(make_loader, f"{server.address}/bucket/a", cache=str(tmp_path / "cache"), attempts=1)
    assert list((tmp_path / "cache").rglob("*.tar")) == []


def test_s3(make_loader, prepared, serve, monkeypatch):
    pytest.importorskip("s3fs")
    server = serve()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    assert torch.equal(first_steps(make_loader, "s3://bucket/a"), first_steps(make_loader, str(prepared)))
    assert any("shard" in path and wanted for path, wanted in server.requests)


def test_an_address_without_data(serve):
    with pytest.raises(DataError, match=r"/bucket/b: is not a prepared folder"):
        PreparedData(f"{serve().address}/bucket/b")


def test_a_protocol_that_is_not_there():
    with pytest.raises(PreflightError, match=r"nope://x: cannot be read: .*pip install 'megatrain\[remote\]'"):
        PreparedData("nope://x")


def test_the_state_does_not_know_where_the_data_lies(make_loader, prepared, serve):
    local = make_loader(train=(Source(path=str(prepared)),))
    remote = make_loader(train=(Source(path=f"{serve().address}/bucket/a"),), reading=ReadingSection(**PATIENT))
    assert json.dumps(local.state_dict()) == json.dumps(remote.state_dict())
