"""A checkpoint may come from others: its pickle may name DCP's own classes, and nothing else."""

import errno
import hashlib
import io
import math
import os
import pickle
import zipfile
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from megatrain.base.errors import CheckpointError
from megatrain.checkpoint import storage
from megatrain.checkpoint.manifest import FileRecord
from megatrain.checkpoint.planner import CompactSavePlanner, TensorPlanner
from megatrain.checkpoint.read import read_tensors
from megatrain.checkpoint.saved_tensor import read_saved_tensor
from megatrain.checkpoint.storage import HashingWriter, SafeReader
from tests.checkpoint.hostile import Calls, change_metadata, touches

pytestmark = pytest.mark.filterwarnings("ignore:.*intent is to save in a single process")


def saved(folder):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "weight.a": torch.randn(5, 7, generator=generator),
        "weight.b": torch.randn(3, generator=generator).to(torch.bfloat16),
        "exp_avg.a": torch.randn(5, 7, generator=generator),
    }
    writer = HashingWriter(folder)
    dcp.save(tensors, storage_writer=writer, planner=CompactSavePlanner(), no_dist=True)
    return tensors, writer


class TestWriter:
    def test_records_are_those_of_the_files(self, tmp_path) -> None:
        _, writer = saved(tmp_path)
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert len(files) == 2
        assert ".metadata" in files
        assert writer.records == {
            name: FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in files.items()
        }

    def test_the_folder_may_be_moved(self, tmp_path) -> None:
        tensors, _ = saved(tmp_path / "here")
        (tmp_path / "here").rename(tmp_path / "there")
        assert torch.equal(read_tensors(tmp_path / "there")["weight.a"], tensors["weight.a"])
        assert b"here" not in (tmp_path / "there" / ".metadata").read_bytes()

    def test_a_folder_is_written_once(self, tmp_path) -> None:
        saved(tmp_path)
        before = (tmp_path / ".metadata").read_bytes()
        with pytest.raises(CheckpointException) as caught:
            saved(tmp_path)
        assert "already exists" in str(caught.value.failures[0][0])
        assert (tmp_path / ".metadata").read_bytes() == before

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
    @pytest.mark.parametrize("call", ["write", "flush", "fileno", "close", "open", "fsync"])
    def test_the_systems_own_words_are_said(self, tmp_path, monkeypatch, number, call) -> None:
        """Not "unexpected pos", which is what torch makes of a write that failed."""

        def fail(*_):
            raise OSError(number, os.strerror(number))

        if call == "open":
            monkeypatch.setattr(storage, "open", fail, raising=False)
        elif call == "fsync":
            monkeypatch.setattr("torch.distributed.checkpoint.filesystem.os.fsync", fail)
        else:
            monkeypatch.setattr(storage._HashingStream, call, fail)
        with pytest.raises(CheckpointException) as caught:
            saved(tmp_path / "c")
        text = storage.cause_of(caught.value, tmp_path / "c")
        assert text.startswith(f"{tmp_path / 'c' / '__0_0.distcp'}: cannot be written: {os.strerror(number)}")


def with_chunk(folder, content):
    """Another content where tensor weight.a lies, of the length that `.metadata` then tells."""
    path = folder / "__0_0.distcp"
    size = path.stat().st_size
    with open(path, "ab") as file:
        file.write(content)

    def change(metadata):
        info = next(info for index, info in metadata.storage_data.items() if index.fqn == "weight.a")
        info.offset, info.length = size, len(content)

    change_metadata(folder, change)


SHARED = b"\x80\x02)q\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"}h\x3cNs."
DEEP = b"\x80\x02})" + b"\x85" * 100_000 + b"Ns."


def archived(value, compression=zipfile.ZIP_STORED, **others):
    """Saved by torch, but for some entries of the archive."""
    buffer, out = io.BytesIO(), io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as given, zipfile.ZipFile(out, "w", compression) as written:
        for entry in given.infolist():
            content = others.get(entry.filename.partition("/")[2], given.read(entry))
            written.writestr(entry.filename, content)
    return out.getvalue()


def pickle_of(tensor):
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read("archive/data.pkl")


BEYOND = pickle_of(torch.zeros(10, 14)[::2, ::2])


class TestChunks:
    """Of a tensor's file only tensors are read, of the shape that `.metadata` tells."""

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"x" * 200, "cannot be read as a tensor"),
            (archived(torch.zeros(7, 5)), "is no float32 tensor of"),
            (archived(torch.zeros(5, 7, dtype=torch.float64)), "is no float32 tensor of"),
            (archived(torch.zeros(5, 7).to_sparse()), "no plain tensor"),
            (archived([torch.zeros(5, 7)]), "no plain tensor"),
            (archived({"a": 1} | {str(i): i for i in range(20)}), "no plain tensor"),
            (archived(torch.zeros(5, 7), zipfile.ZIP_DEFLATED), "larger than the file has bytes for it"),
            (archived(torch.zeros(5, 7, device="meta")), "no plain tensor"),
            (archived(torch.nn.Parameter(torch.zeros(5, 7))), "no plain tensor"),
            (archived(torch.zeros(5, 7, dtype=torch.complex64)), "is no float32 tensor of"),
            (archived(torch.zeros(5, 7), **{"data.pkl": SHARED}), "no plain tensor"),
            (archived(torch.zeros(5, 7), **{"data.pkl": DEEP}), "no plain tensor"),
            (archived(torch.zeros(5, 7), **{"data/0": b"1234"}), "not as many as its shape"),
            (archived(torch.zeros(5, 7), byteorder=b"big"), "not little-endian"),
            (archived(torch.zeros(5, 7), **{"data.pkl": BEYOND}), "out of bounds"),
        ],
        ids=[
            *("noise", "another shape", "another dtype", "sparse", "a list", "a dict", "compressed"),
            *("meta", "parameter", "complex", "shared tuples", "deep tuples", "few numbers"),
            *("big-endian", "beyond its numbers"),
        ],
    )
    def test_anything_else_is_refused(self, tmp_path, content, says) -> None:
        saved(tmp_path)
        with_chunk(tmp_path, content)
        with pytest.raises(CheckpointError, match=rf"__0_0\.distcp: weight\.a: .*{says}"):
            read_tensors(tmp_path)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize(
        "shape", [(), (1,), (300,), (1, 70_000), (2, 3, 4), (2, 1, 3, 1), (1, 1, 1, 2, 1, 1, 1, 3)]
    )
    def test_what_torch_saves_is_read(self, dtype, shape) -> None:
        numel = math.prod(shape)
        whole = torch.arange(numel + 7, dtype=torch.float32).to(dtype)
        turned = tuple(reversed(range(len(shape))))
        for tensor in (whole[:numel].clone().view(shape), whole[7:].clone().view(shape).permute(turned).contiguous()):
            for stored in (tensor, tensor.permute(turned)):
                buffer = io.BytesIO()
                torch.save(stored, buffer)
                read = read_saved_tensor(buffer, dtype, tuple(stored.shape))
                assert read.dtype == dtype
                assert torch.equal(read, stored)

    @pytest.mark.parametrize("form", ["archive", "pickle"])
    def test_a_payload_does_not_run(self, tmp_path, form) -> None:
        saved(tmp_path / "c")
        payload = touches(tmp_path / "ran")
        content = archived(payload) if form == "archive" else pickle.dumps(payload)
        with_chunk(tmp_path / "c", content.ljust(200, b"."))
        with pytest.raises(CheckpointError, match="cannot be read as a tensor"):
            read_tensors(tmp_path / "c")
        assert not (tmp_path / "ran").exists()

    def test_the_planner_unpickles_nothing(self, tmp_path) -> None:
        item = SimpleNamespace(storage_index=SimpleNamespace(fqn="weight.a"))
        with pytest.raises(CheckpointError, match=r"weight\.a: is no tensor"):
            TensorPlanner().load_bytes(item, io.BytesIO(pickle.dumps(touches(tmp_path / "ran"))))
        assert not (tmp_path / "ran").exists()

    def test_a_tensor_that_is_wanted_must_be_there(self, tmp_path) -> None:
        tensors, _ = saved(tmp_path)
        reader = SafeReader(tmp_path)
        with pytest.raises(CheckpointError, match=r"weight\.c: is not stored, the model has \(2,\)"):
            reader.expect({**tensors, "weight.c": torch.zeros(2)})
        with pytest.raises(CheckpointError, match=r"weight\.a: is stored as \(5, 7\), the model has \(5, 8\)"):
            reader.expect({"weight.a": torch.zeros(5, 8)})


class TestReadTensors:
    def test_round_trip(self, tmp_path) -> None:
        tensors, _ = saved(tmp_path)
        read = read_tensors(tmp_path)
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)

    def test_one_kind_is_named_without_it(self, tmp_path) -> None:
        tensors, _ = saved(tmp_path)
        read = read_tensors(tmp_path, kind="weight")
        assert read.keys() == {"a", "b"}
        assert torch.equal(read["a"], tensors["weight.a"])

    def test_one_process_is_nothing_to_warn_of(self, tmp_path, recwarn) -> None:
        saved(tmp_path)
        recwarn.clear()
        read_tensors(tmp_path)
        assert not recwarn.list


class TestPickle:
    def test_a_call_of_the_system_is_refused_and_does_not_run(self, tmp_path) -> None:
        ran = tmp_path / "ran"
        (tmp_path / ".metadata").write_bytes(pickle.dumps(Calls(os.system, f"touch '{ran}'")))
        with pytest.raises(CheckpointError, match=r"\.metadata: asks for posix\.system.*refused"):
            read_tensors(tmp_path)
        assert not ran.exists()

    @pytest.mark.parametrize(
        "call",
        [Calls(eval, "1"), Calls(getattr, 1, "real"), Calls(torch.load, "x"), Calls(torch.tensor, [1])],
        ids=["eval", "getattr", "torch.load", "torch.tensor"],
    )
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_so_is_anything_but_the_classes_of_metadata(self, tmp_path, call, protocol) -> None:
        (tmp_path / ".metadata").write_bytes(pickle.dumps(call, protocol=protocol))
        with pytest.raises(CheckpointError, match="refused"):
            SafeReader(tmp_path).read_metadata()

    @pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", pickle.dumps(7), pickle.dumps({"a": [1]})])
    def test_what_is_no_metadata_is_refused(self, tmp_path, content) -> None:
        (tmp_path / ".metadata").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"\.metadata: "):
            SafeReader(tmp_path).read_metadata()

    def test_a_truncated_one_is_refused(self, tmp_path) -> None:
        saved(tmp_path)
        whole = (tmp_path / ".metadata").read_bytes()
        for length in range(0, len(whole), 7):
            (tmp_path / ".metadata").write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=r"\.metadata: "):
                SafeReader(tmp_path).read_metadata()

    def test_a_missing_one_is_refused(self, tmp_path) -> None:
        with pytest.raises(CheckpointError, match=r"\.metadata: cannot be read"):
            read_tensors(tmp_path)
