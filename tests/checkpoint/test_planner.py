"""Planning many ranks is light; what comes out is what torch's own planners and readers make and read."""

import pickle
import random

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, SavePlan
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatrain.base.errors import CheckpointError
from megatrain.checkpoint.local_shards import LocalShards
from megatrain.checkpoint.planner import CompactSavePlanner, TensorPlanner
from megatrain.checkpoint.read import read_tensors
from megatrain.checkpoint.storage import HashingWriter
from megatrain.huggingface.names import shapes
from tests.checkpoint.many_ranks import Ranks, model, parts_of, pickled_bytes, write

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*intent is to save in a single process",
    "ignore:torch.distributed is disabled",
    "ignore:.*will be deprecated",
)

TENSORS = {
    f"{kind}.{name}": torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) + number
    for number, kind in enumerate(["weight", "exp_avg"])
    for name, shape in {"a": (7, 5), "b": (7, 5), "c": (3,), "d": (4, 3, 5)}.items()
}


def blocks(layers: int) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes(model(layers)).items() if name.startswith("blocks.")}


def planners(count: int) -> list[CompactSavePlanner]:
    return [CompactSavePlanner() for _ in range(count)]


@pytest.fixture(scope="module")
def thousand():
    """The plans of 1,000 ragged ranks, by layers."""
    found = {}
    for layers in (1, 2):
        ranks = Ranks(blocks(layers), 1000)
        local, written = zip(*map(ranks.save, range(1000)), strict=True)
        found[layers] = ranks, list(local), written, ranks.planners[0].create_global_plan(list(local))[1]
    return found


class TestThousandRanks:
    """Of what grows with chunks, nothing is sent but some bytes for many of them, and nothing is made twice."""

    def test_little_is_sent_the_first_time_and_nothing_afterwards(self, thousand) -> None:
        ranks, local, written, _ = thousand[2]
        assert sum(ranks.chunks) > 90_000
        assert pickled_bytes(local) < 8 * sum(ranks.chunks)  # an object of DCP's has 160
        assert pickled_bytes(written) < 4 * sum(ranks.chunks)
        assert [ranks.save(rank)[0] for rank in (0, 500, 999)] == [SavePlan([])] * 3

    def test_rank_0_plans_once(self, thousand) -> None:
        ranks, *_, first = thousand[2]
        _, second = ranks.planners[0].create_global_plan([SavePlan([])] * 1000)
        assert second.state_dict_metadata is first.state_dict_metadata
        assert second is not first

    def test_more_layers_are_no_more_chunks(self, thousand) -> None:
        lists = {
            layers: {id(entry.chunks): len(entry.chunks) for entry in metadata.state_dict_metadata.values()}
            for layers, (*_, metadata) in thousand.items()
        }
        assert sum(lists[1].values()) == sum(lists[2].values()) < 25_000
        assert sum(thousand[2][0].chunks) == 2 * sum(thousand[1][0].chunks)

    def test_an_entry_of_the_table_is_short(self, thousand, tmp_path) -> None:
        size = {}
        for layers, (ranks, _, written, _) in thousand.items():
            _, metadata = ranks.planners[0].create_global_plan([SavePlan([])] * 1000)
            HashingWriter(tmp_path / str(layers)).fs.mkdir(tmp_path / str(layers))
            HashingWriter(tmp_path / str(layers)).finish(metadata, list(written))
            size[layers] = (tmp_path / str(layers) / ".metadata").stat().st_size
        assert size[2] - size[1] < 50 * sum(thousand[1][0].chunks)

    def test_a_load_plan_is_not_gathered(self, thousand) -> None:
        metadata = thousand[1][3]
        planner = TensorPlanner()
        name = "weight.blocks.0.mlp.down.weight"
        stored = metadata.state_dict_metadata[name]
        flat = torch.zeros(1).expand(3_000_000)
        planner.set_up_planner({name: LocalShards(flat, stored.size, 1_234_567, None)}, metadata, False)
        plan = planner.create_local_plan()
        assert plan.items == []
        items = planner.finish_plan(plan).items
        assert sum(item.lengths.numel() for item in items) == flat.numel()


class TestSavePlanner:
    @pytest.mark.parametrize("ranks", [1, 2, 3, 5])
    def test_torch_reads_it(self, tmp_path, ranks) -> None:
        write(tmp_path, [parts_of(TENSORS, rank, ranks) for rank in range(ranks)], planners(ranks))
        read = {name: torch.empty_like(tensor) for name, tensor in TENSORS.items()}
        dcp.load(read, storage_reader=FileSystemReader(tmp_path), no_dist=True)
        ours = read_tensors(tmp_path)
        assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
        assert all(torch.equal(ours[name], tensor) for name, tensor in TENSORS.items())

    def test_the_table_is_the_one_that_torch_writes(self, tmp_path) -> None:
        """But for the order, in which tensors that are cut alike follow each other."""
        own = parts_of(TENSORS, 0, 1)
        dcp.save(dict(own), storage_writer=FileSystemWriter(tmp_path / "torch"), no_dist=True)
        dcp.save(dict(own), storage_writer=HashingWriter(tmp_path / "ours"), planner=CompactSavePlanner(), no_dist=True)
        theirs, ours = (pickle.loads((tmp_path / name / ".metadata").read_bytes()) for name in ("torch", "ours"))
        assert ours.state_dict_metadata == theirs.state_dict_metadata
        assert ours.planner_data == theirs.planner_data
        assert ours.version == theirs.version
        assert {i: p.length for i, p in ours.storage_data.items()} == {
            i: p.length for i, p in theirs.storage_data.items()
        }

    def test_a_checkpoint_of_torchs_own_planner_is_read(self, tmp_path) -> None:
        """As earlier versions wrote it."""

        class Writer(FileSystemWriter):
            def storage_meta(self):
                return StorageMeta(save_id=self.save_id)

        dcp.save(parts_of(TENSORS, 0, 1), storage_writer=Writer(tmp_path), no_dist=True)
        read = read_tensors(tmp_path)
        assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())

    def test_a_plan_that_changes_is_sent_again(self, tmp_path) -> None:
        kept = planners(2)
        for number, tensors in enumerate([TENSORS, {"weight.a": TENSORS["weight.a"]}, TENSORS, TENSORS]):
            write(tmp_path / str(number), [parts_of(tensors, rank, 2) for rank in range(2)], kept)
            read = read_tensors(tmp_path / str(number))
            assert read.keys() == tensors.keys()
            assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())

    def test_after_a_plan_that_failed_it_is_sent_again(self, tmp_path) -> None:
        kept = planners(2)
        with pytest.raises(CheckpointError):
            write(tmp_path / "0", [parts_of(TENSORS, 0, 2)] * 2, kept)
        write(tmp_path / "1", [parts_of(TENSORS, rank, 2) for rank in range(2)], kept)
        assert torch.equal(read_tensors(tmp_path / "1")["weight.a"], TENSORS["weight.a"])

    def test_of_copies_one_is_written(self, tmp_path) -> None:
        """Replicas without ZeRO have the same; they share the work."""
        kept = planners(3)
        for save in ("first", "second"):
            write(tmp_path / save, [parts_of(TENSORS, 0, 1)] * 3, kept)
            read = read_tensors(tmp_path / save)
            assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
            metadata = FileSystemReader(tmp_path / save).read_metadata()
            assert len(metadata.storage_data) == sum(len(e.chunks) for e in metadata.state_dict_metadata.values())
            assert len({place.relative_path for place in metadata.storage_data.values()}) == 3

    @pytest.mark.parametrize("parts", [[(0, 2)], [(0, 2), (0, 2)], [(0, 2), (1, 2), (1, 3)]], ids=str)
    def test_boxes_that_do_not_cover_a_tensor_are_not_saved(self, tmp_path, parts) -> None:
        with pytest.raises(CheckpointError, match=r"weight\.a: .* does not cover \(7, 5\) exactly; nothing is saved"):
            write(tmp_path, [parts_of(TENSORS, *part) for part in parts], planners(len(parts)))
        assert not (tmp_path / ".metadata").exists()

    def test_what_is_no_tensor_is_refused(self) -> None:
        planner = CompactSavePlanner()
        planner.set_up_planner({"step": 3}, None, True)
        with pytest.raises(CheckpointError, match="step: is no tensor"):
            planner.create_local_plan()

    def test_nothing_is_held_until_the_next_save(self, tmp_path) -> None:
        (planner,) = kept = planners(1)
        write(tmp_path, [parts_of(TENSORS, 0, 1)], kept)
        assert planner.state_dict == {}
        assert planner.plan.items == []


class TestTensorPlanner:
    def test_overlaps_are_those_that_torch_finds(self) -> None:
        generator = random.Random(0)
        for _ in range(200):
            shape = torch.Size(generator.randint(1, 6) for _ in range(generator.randint(0, 3)))
            ranks = generator.randint(1, 5)
            parts = [parts_of({"x": torch.zeros(shape)}, rank, ranks) for rank in range(ranks)]
            stored = [chunk for own in parts if own for chunk in own["x"].__create_chunk_list__()]
            wanted = parts_of({"x": torch.zeros(shape)}, 0, generator.randint(1, 5))
            entry = TensorStorageMetadata(TensorProperties(dtype=torch.float32), shape, stored)
            planner = TensorPlanner()
            planner.set_up_planner(dict(wanted), Metadata({"x": entry}), True)
            found = planner.finish_plan(planner.create_local_plan()).items
            expected = create_read_items_for_chunk_list("x", entry, wanted["x"].__create_chunk_list__())
            assert len(found) == len(expected)
            assert all(item in expected for item in found)

    @pytest.mark.parametrize(("name", "shape"), [("y", (2, 3)), ("x", (3, 2))])
    def test_what_is_not_stored_like_that_is_refused(self, name, shape) -> None:
        entry = TensorStorageMetadata(TensorProperties(dtype=torch.float32), torch.Size((2, 3)), [])
        planner = TensorPlanner()
        planner.set_up_planner({name: torch.zeros(shape)}, Metadata({"x": entry}), True)
        with pytest.raises(CheckpointError, match=rf"{name}: is not stored in the shape"):
            planner.create_local_plan()
