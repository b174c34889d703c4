"""`.metadata` of any origin: nothing of it runs, fills the memory or takes for ever, and it must describe the files."""

import itertools
import os
import pickle
import random
import resource
import time

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatrain.base.errors import CheckpointError
from megatrain.checkpoint.coverage import covers_exactly
from megatrain.checkpoint.metadata import read_stored_tensors
from tests.checkpoint.hostile import change_metadata, save, touches

NAME = "weight.a"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "step-00000010"
    save(folder, {NAME: torch.arange(48.0).view(8, 6), "weight.b": torch.ones(3, dtype=torch.bfloat16)})
    return folder


def chunk(offsets, sizes):
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


def of(metadata, name=NAME):
    return metadata.state_dict_metadata[name]


def place(metadata, name=NAME):
    return next(info for index, info in metadata.storage_data.items() if index.fqn == name)


def split(metadata, *pieces):
    """Other chunks of the tensor, each stored where the one was."""
    info = place(metadata)
    del metadata.storage_data[next(index for index in metadata.storage_data if index.fqn == NAME)]
    of(metadata).chunks[:] = [chunk(*piece) for piece in pieces]
    for offsets, _ in pieces:
        metadata.storage_data[MetadataIndex(NAME, offsets)] = info


def as_bytes(metadata):
    metadata.state_dict_metadata[NAME] = BytesStorageMetadata()


def put(target, **fields):
    for name, value in fields.items():
        object.__setattr__(target, name, value)


def put_dtype(dtype):
    properties = TensorProperties(dtype=torch.float32)
    put(properties, dtype=dtype)
    return properties


def test_what_dcp_writes_is_read(folder) -> None:
    found = read_stored_tensors(folder)
    assert {name: (stored.dtype, stored.shape) for name, stored in found.items()} == {
        NAME: ("float32", (8, 6)),
        "weight.b": ("bfloat16", (3,)),
    }
    stored = found[NAME]
    assert [(c.offsets, c.sizes) for c in stored.chunks] == [((0, 0), (8, 6))]
    assert stored.locations[0, 0].file == "__0_0.distcp"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (as_bytes, "'weight.a' is a pickled object"),
        (lambda m: put(place(m), transform_descriptors=["x"]), "transformed tensors"),
        (lambda m: put(place(m), relative_path="../outside/__0_0.distcp"), "is no data file here"),
        (lambda m: put(place(m), relative_path="/etc/passwd"), "is no data file here"),
        (lambda m: put(place(m), relative_path="pipe.distcp"), "is no data file here"),
        (lambda m: put(place(m), relative_path="state.json"), "is no data file here"),
        (lambda m: put(place(m), relative_path=7), "is no data file here"),
        (lambda m: put(place(m), offset=-1), "no valid place"),
        (lambda m: put(place(m), length=0), "no valid place"),
        (lambda m: put(place(m), length="9"), "no valid place"),
        (lambda m: put(place(m), length=10**13), "beyond the end"),
        (lambda m: put(place(m), length=3), "not the size that is stored"),
        (lambda m: put(of(m), chunks=[]), "chunks, and 2 are stored"),
        (lambda m: m.storage_data.clear(), "chunks, and 0 are stored"),
        (lambda m: split(m), "do not cover it exactly"),
        (lambda m: split(m, ((0, 0), (4, 6))), "do not cover it exactly"),
        (lambda m: split(m, ((0, 0), (5, 6)), ((4, 0), (4, 6))), "do not cover it exactly"),
        (lambda m: split(m, ((0, 0), (8, 5)), ((0, 5), (7, 1))), "do not cover it exactly"),
        (lambda m: split(m, ((0, 0), (9, 6))), "do not cover it exactly"),
        (lambda m: split(m, ((-1, 0), (9, 6))), "do not cover it exactly"),
        (lambda m: split(m, ((0,), (48,))), "do not cover it exactly"),
        (lambda m: split(m, ((0, 0), (10**13, 6))), "do not cover it exactly"),
        (lambda m: put(of(m), size=torch.Size([10**13, 6])), "do not cover it exactly"),
        (lambda m: put(of(m), size=torch.Size([10**17, 10**17])), "too large"),
        (lambda m: put(of(m), size=(2**80,)), "no valid shape"),
        (lambda m: put(of(m), size=torch.Size([-8, -6])), "no valid shape"),
        (lambda m: put(of(m), size=torch.Size([8] * 9)), "at most 8 integers"),
        (lambda m: put(of(m), size="8"), "no valid shape"),
        (lambda m: put(of(m), chunks=[7]), "chunks that are not DCP's"),
        (lambda m: put(of(m), chunks=7), "no list of chunks"),
        (lambda m: put(of(m), properties=TensorProperties(dtype=torch.int64)), "torch.int64"),
        (lambda m: put(of(m), properties=7), "no dtype"),
        (lambda m: put(m, storage_data=None), "no storage description"),
        (lambda m: put(m, state_dict_metadata=[1]), "no storage description"),
        (lambda m: m.state_dict_metadata.update({7: of(m)}), "a key of type int"),
        (lambda m: split(m, ((0, 0), (4, 6)), ((4, 0), (4, 6))), "two chunks are said to share bytes"),
        (lambda m: put(next(iter(m.storage_data)), fqn=(1,)), "not DCP's"),
        (lambda m: put(next(iter(m.storage_data)), offset=((1,), 2)), "offsets are not integers"),
        (lambda m: put(of(m), properties=put_dtype(((1,),))), "no dtype"),
        (lambda m: put(of(m).chunks[0], sizes=((8,), 6)), "do not cover it exactly"),
        (lambda m: m.state_dict_metadata.update(x=7), "is no tensor"),
        (lambda m: m.storage_data.update({"x": _StorageInfo("a", 0, 1)}), "chunks, and 3 are stored"),
        (lambda m: m.state_dict_metadata, "no description of a checkpoint"),
    ],
)
def test_what_does_not_describe_the_files_is_refused(folder, change, says) -> None:
    os.mkfifo(folder / "pipe.distcp")
    (folder / "state.json").touch()
    change_metadata(folder, change)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_stored_tensors(folder)
    assert str(caught.value).startswith(f"{folder}/.metadata: ")


@pytest.mark.parametrize("where", ["planner_data", "version", "storage_meta"])
def test_nothing_that_is_not_needed_runs(folder, tmp_path, where) -> None:
    ran = tmp_path / "ran"
    change_metadata(folder, lambda metadata: setattr(metadata, where, touches(ran)))
    with pytest.raises(CheckpointError, match="refused"):
        read_stored_tensors(folder)
    assert not ran.exists()


def test_what_a_class_is_stays_as_it_is(folder) -> None:
    """BUILD with a pair would set attributes, also of a class."""
    pair = b"(}\x8c\x07offsets\x8c\x01xsN\x86"  # a state of (…, {…})
    for name in ("ChunkStorageMetadata", "Metadata", "MetadataIndex", "_MEM_FORMAT_ENCODING"):
        module = b"torch.distributed.checkpoint.metadata"
        named = b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"
        (folder / ".metadata").write_bytes(b"\x80\x04" + named + pair + b"b.")
        with pytest.raises(CheckpointError):
            read_stored_tensors(folder)
    save(folder.parent / "later", {NAME: torch.zeros(2)})
    assert read_stored_tensors(folder.parent / "later")[NAME].shape == (2,)


def a_list(length):
    """A list of so many references to one object: two bytes each."""
    return b"]\x94}\x94(" + b"h\x01" * length + b"e"


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04Nr\xff\xff\xff\x0c.",  # LONG_BINPUT: a memo of gigabytes
        b"\x80\x04Nr\xff\xff\xff\xff.",
        b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"N.",
        b"\x80\x04" + a_list(200_000) + b"2" * 200_000 + b".",
        b"\x80\x04" + a_list(100_000) + b"0(" + b"\x8c\x05torch\x8c\x04Size\x93h\x00\x85R" * 20_000 + b"t.",
        b"\x80\x04X\xff\xff\xff\x7fabc.",
        b"\x80\x04]" + b"\x85" * 1_000_000 + b".",
        b"}" * 1_000_000,
        b"\x80\x04})" + b"\x85" * 1_000_000 + b"Ns.",  # a hash as deep as the stack, and deeper
        b"\x80\x04})\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(60)) + b"Ns.",  # 2^60 hashes
    ],
    ids=[
        "memo",
        "larger memo",
        "frame",
        "dup",
        "copies",
        "string",
        "deep",
        "dicts",
        "deep key",
        "key of shared tuples",
    ],
)
def test_a_small_file_takes_neither_memory_nor_time(folder, content) -> None:
    (folder / ".metadata").write_bytes(content)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError, match=r"\.metadata: "):
        read_stored_tensors(folder)
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


def test_metadata_larger_than_the_tensors_is_refused_unread(folder) -> None:
    """Three million chunks in files of a few kilobytes."""
    (folder / ".metadata").write_bytes(b"\x80\x04" + b"N" * (2 << 20))
    began = time.process_time()
    with pytest.raises(CheckpointError, match="at most"):
        read_stored_tensors(folder)
    assert time.process_time() - began < 1


def test_many_chunks_take_time_in_proportion(tmp_path) -> None:
    """As many chunks per tensor as a checkpoint of 1,024 ranks has (2,300), and more."""
    count = 40_000
    folder = tmp_path / "step-00000001"
    save(folder, {NAME: torch.zeros(1)})
    width = 4 * 4 + 1000
    with open(folder / "__0_0.distcp", "r+b") as file:
        file.truncate(count * width)

    def many(metadata):
        name = metadata.state_dict_metadata.popitem()[0]
        chunks = [chunk([2 * i, 0], [2, 2]) for i in range(count)]
        entry = TensorStorageMetadata(TensorProperties(dtype=torch.float32), torch.Size([2 * count, 2]), chunks)
        metadata.state_dict_metadata[name] = entry
        metadata.storage_data = {
            MetadataIndex(name, c.offsets): _StorageInfo("__0_0.distcp", i * width, width) for i, c in enumerate(chunks)
        }

    change_metadata(folder, many)
    began = time.process_time()
    assert len(read_stored_tensors(folder)[NAME].chunks) == count
    assert time.process_time() - began < 5


class TestCoversExactly:
    def test_agrees_with_painting_every_element(self) -> None:
        chance = random.Random(0)
        outcomes = {True: 0, False: 0}
        for _ in range(2000):
            shape = tuple(chance.randint(1, 3) for _ in range(chance.randint(1, 3)))
            chunks = self.cut(chance, shape)
            if chance.random() < 0.6:  # spoil it
                spoilt = chance.randrange(len(chunks))
                change = chance.choice(["drop", "double", "shift", "grow"])
                offsets, sizes = chunks[spoilt]
                dim = chance.randrange(len(shape))
                step = tuple(int(i == dim) for i in range(len(shape)))
                if change == "drop":
                    del chunks[spoilt]
                elif change == "double":
                    chunks.append(chunks[chance.randrange(len(chunks))])
                elif change == "shift":
                    chunks[spoilt] = (tuple(o + s for o, s in zip(offsets, step, strict=True)), sizes)
                else:
                    chunks[spoilt] = (offsets, tuple(n + s for n, s in zip(sizes, step, strict=True)))
            painted = np.zeros([size + 2 for size in shape], dtype=int)
            for offsets, sizes in chunks:
                painted[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))] += 1
            inside = tuple(slice(0, size) for size in shape)
            exact = bool((painted[inside] == 1).all()) and painted.sum() == painted[inside].sum()
            got = covers_exactly(shape, [offsets for offsets, _ in chunks], [sizes for _, sizes in chunks])
            assert got == exact, (shape, chunks)
            outcomes[exact] += 1
        assert min(outcomes.values()) > 300

    @staticmethod
    def cut(chance, shape):
        """A random grid of chunks, some of them cut again."""
        edges = [sorted({0, size, *(chance.randint(0, size) for _ in range(2))}) for size in shape]
        spans = [list(itertools.pairwise(edge)) for edge in edges]
        chunks = [
            (tuple(low for low, _ in cell), tuple(high - low for low, high in cell))
            for cell in itertools.product(*spans)
        ]
        chance.shuffle(chunks)
        return chunks

    def test_a_number_is_covered_by_itself(self) -> None:
        assert covers_exactly((), [()], [()])
        assert not covers_exactly((), [(), ()], [(), ()])
        assert not covers_exactly((), [], [])

    @pytest.mark.parametrize("wrong", [2**70, 1.5, "1", None, (1,)])
    def test_what_is_no_position_covers_nothing(self, wrong) -> None:
        assert not covers_exactly((2,), [(0,), (wrong,)], [(1,), (1,)])
        assert not covers_exactly((2,), [(0,), (1,)], [(1,), (wrong,)])


def test_torch_is_not_imported() -> None:
    import subprocess
    import sys

    code = "import sys, megatrain.checkpoint.metadata; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_protocols_that_this_version_writes_are_known(folder) -> None:
    for protocol in (4, 5):
        change_metadata(folder, lambda metadata, protocol=protocol: pickle.dumps(metadata, protocol=protocol))
        assert set(read_stored_tensors(folder)) == {NAME, "weight.b"}
