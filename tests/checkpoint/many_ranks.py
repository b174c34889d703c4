"""Many ranks in one process: what each has under ZeRO-3, and its planner, driven as DCP drives it."""

import math
import pickle
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import SavePlan
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from megatrain.checkpoint.local_shards import LocalShards
from megatrain.checkpoint.metadata_writer import WrittenChunks
from megatrain.checkpoint.planner import CompactSavePlanner
from megatrain.checkpoint.storage import HashingWriter
from megatrain.config import ModelSection
from megatrain.model.families.llama.section import LlamaSection

KINDS = ("weight", "exp_avg", "exp_avg_sq")
_AROUND = 1_200  # bytes that torch.save puts around a chunk, about


def model(layers: int) -> ModelSection:
    """Of 70 billion parameters with 80 layers."""
    return LlamaSection(
        num_hidden_layers=layers,
        hidden_size=8192,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
        vocab_size=128256,
    )


def fragments(sizes: dict[str, tuple[int, ...]], rank: int, ranks: int) -> dict[str, LocalShards]:
    """What a ZeRO-3 rank has: an equal part of every parameter, the last ones shorter or empty. No memory is used."""
    alike: dict[tuple[int, ...], LocalShards | None] = {}
    for shape in sizes.values():
        if shape not in alike:
            numel = math.prod(shape)
            part = -(-numel // ranks)
            start = min(rank * part, numel)
            own = torch.zeros(1).expand(min(part, numel - start))
            alike[shape] = LocalShards(own, torch.Size(shape), start, None) if len(own) else None
    return {
        f"{kind}.{name}": fragment
        for kind in KINDS
        for name, shape in sizes.items()
        if (fragment := alike[shape]) is not None
    }


class Ranks:
    """All ranks' planners in one process, each driven as DCP does, up to what they send to rank 0."""

    def __init__(self, sizes: dict[str, tuple[int, ...]], ranks: int) -> None:
        self.sizes = sizes
        self.planners = [CompactSavePlanner() for _ in range(ranks)]
        self.chunks = [0] * ranks
        self.seconds = 0.0  # of the ranks' own plans

    def save(self, rank: int) -> tuple[SavePlan, WrittenChunks]:
        planner, own = self.planners[rank], fragments(self.sizes, rank, len(self.planners))
        began = time.perf_counter()
        planner.set_up_planner(own, None, rank == 0)
        plan = planner.create_local_plan()
        self.seconds += time.perf_counter() - began
        items = planner.finish_plan(SavePlan([])).items
        self.chunks[rank] = len(items)
        return plan, planner.written(list(_results(items, f"__{rank}_0.distcp")))


def _results(items: list[WriteItem], file: str) -> Iterator[WriteResult]:
    """As if the file had been written."""
    at = 0
    for item in items:
        assert item.tensor_data is not None
        length = 4 * math.prod(item.tensor_data.chunk.sizes) + _AROUND
        place = _StorageInfo(file, at, length)
        yield WriteResult(index=item.index, size_in_bytes=length, storage_data=place)
        at += length


def pickled_bytes(sent: Iterable[Any]) -> int:
    return sum(len(pickle.dumps(one)) for one in sent)


def write(folder: Path, ranks: list[dict[str, LocalShards]], planners: list[CompactSavePlanner]) -> None:
    """A checkpoint of several ranks, written by one process."""
    writers = [HashingWriter(folder) for _ in ranks]
    local = []
    for rank, (writer, planner, own) in enumerate(zip(writers, planners, ranks, strict=True)):
        writer.set_up_storage_writer(rank == 0, rank=rank, use_collectives=True)
        planner.set_up_planner(dict(own), writer.storage_meta(), rank == 0)
        local.append(writer.prepare_local_plan(planner.create_local_plan()))
    plans, metadata = planners[0].create_global_plan(local)
    plans = writers[0].prepare_global_plan(plans)
    written = [
        writer.write_data(planner.finish_plan(plan), planner).wait()
        for writer, planner, plan in zip(writers, planners, plans, strict=True)
    ]
    writers[0].finish(metadata, written)


def parts_of(tensors: dict[str, Tensor], rank: int, ranks: int) -> dict[str, LocalShards]:
    """As `fragments`, of tensors that are there."""
    found = {}
    for name, tensor in tensors.items():
        part = -(-tensor.numel() // ranks)
        flat = tensor.reshape(-1)[rank * part : (rank + 1) * part]
        if flat.numel():
            found[name] = LocalShards(flat, tensor.shape, rank * part, None)
    return found


def files_of(written: list[WrittenChunks]) -> dict[str, int]:
    return {own.file: int(sum(own.offsets_and_lengths()[1])) for own in written}
