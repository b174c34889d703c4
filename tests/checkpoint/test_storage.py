"""A checkpoint may come from others: its pickle may name DCP's own classes, and nothing else."""

import hashlib
import os
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from megatrain.checkpoint.manifest import FileRecord
from megatrain.checkpoint.read import read_tensors
from megatrain.checkpoint.storage import HashingWriter, SafeReader
from megatrain.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:.*intent is to save in a single process")


class Calls:
    """Unpickled by an ordinary unpickler, calls a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(folder):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "weight.a": torch.randn(5, 7, generator=generator),
        "weight.b": torch.randn(3, generator=generator).to(torch.bfloat16),
        "exp_avg.a": torch.randn(5, 7, generator=generator),
    }
    writer = HashingWriter(folder)
    dcp.save(tensors, storage_writer=writer, no_dist=True)
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
