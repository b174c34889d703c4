"""DCP's planners: which chunks of which tensors each rank writes and reads.

torch's default planners gather an object per chunk on rank 0, compare each chunk with those beside it, and scatter the
plans again. ZeRO-3 of 70B on 1,000 ranks has 5 million chunks, for which that takes half an hour, at every save. Here

- a rank's plan stays on the rank. Rank 0 is told in groups: a matrix of all blocks and its two moments have the same
  chunks. From the second save on it is told nothing, unless the plan changed;
- rank 0 makes one list of chunks for all tensors that are cut alike, and checks that it covers them exactly;
- a load gathers nothing: each rank finds what it reads in the checkpoint's own description.
"""

import dataclasses
import io
import itertools
import math
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, LoadPlan, SavePlan
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem, WriteItem
from torch.distributed.checkpoint.planner_helpers import _create_chunk_list
from torch.distributed.checkpoint.storage import WriteResult

from megatrain.base.errors import CheckpointError
from megatrain.base.garbage import no_collection
from megatrain.checkpoint.coverage import covers_exactly
from megatrain.checkpoint.metadata_writer import PlannedChunks, RankChunks, WrittenChunks


class _Group(NamedTuple):
    """Tensors of one shape and dtype of which a rank has the same chunks."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    offsets: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]


class CompactSavePlanner(DefaultSavePlanner):
    """Plans the saves of one run; keep it from one to the next, so that only the first is planned.

    Raises:
        CheckpointError: in DCP's wrapping, the chunks of all ranks do not cover a tensor exactly.
    """

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._items: list[WriteItem] = []
        self._local = b""
        self._known: bytes | None = None  # this rank's plan, as rank 0 has it
        self._left: frozenset[str] = frozenset()  # tensors of it that another rank writes
        self._plans: list[bytes] = []  # of all ranks; on rank 0
        self._planned: Metadata | None = None  # from these

    def create_local_plan(self) -> SavePlan:
        groups, self._items = _grouped(create_default_local_save_plan(self.state_dict, self.is_coordinator).items)
        self._local = zlib.compress(pickle.dumps(groups))
        return SavePlan([], planner_data=None if self._local == self._known else self._local)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        if self._planned is None or any(plan.planner_data is not None for plan in all_plans):
            plans = [
                self._plans[rank] if p.planner_data is None else p.planner_data for rank, p in enumerate(all_plans)
            ]
            with no_collection():
                ranks, left = _without_copies([pickle.loads(zlib.decompress(plan)) for plan in plans])
                self._planned = _global_plan(ranks)
            self._plans = plans
            answers = [SavePlan([], planner_data=names) for names in left]
        else:
            answers = [SavePlan([]) for _ in all_plans]
        return answers, dataclasses.replace(self._planned)  # finish() fills in what belongs to one checkpoint

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        self._known = self._local
        if new_plan.planner_data is not None:
            self._left = new_plan.planner_data
        self._items = [item for item in self._items if item.index.fqn not in self._left]
        self.plan = dataclasses.replace(new_plan, items=self._items)
        return self.plan

    def written(self, results: Sequence[WriteResult]) -> WrittenChunks:
        """What rank 0 must know of this rank's file, in the order of the plan. Lets go of what was saved."""
        places = {result.index: result.storage_data for result in results}
        ordered = [places[item.index] for item in self._items]
        files = {place.relative_path for place in ordered}
        assert len(files) <= 1, "a rank writes one file"
        self.state_dict, self.plan, self._items = {}, SavePlan([]), []
        return WrittenChunks.of(files.pop() if files else "", [p.offset for p in ordered], [p.length for p in ordered])


def _grouped(items: Iterable[WriteItem]) -> tuple[list[_Group], list[WriteItem]]:
    """Groups of tensors that are cut alike, and the items in the groups' order: by group, tensor and chunk."""
    tensors: dict[str, list[WriteItem]] = {}
    for item in items:
        if item.tensor_data is None:
            raise CheckpointError(f"{item.index.fqn}: is no tensor; a checkpoint holds nothing else")
        tensors.setdefault(item.index.fqn, []).append(item)
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name, own in tensors.items():
        data = [item.tensor_data for item in own if item.tensor_data is not None]
        offsets = tuple(tuple(d.chunk.offsets) for d in data)
        sizes = tuple(tuple(d.chunk.sizes) for d in data)
        alike.setdefault((tuple(data[0].size), data[0].properties.dtype, offsets, sizes), []).append(name)
    groups = [_Group._make((*key, tuple(names))) for key, names in alike.items()]
    return groups, [item for group in groups for name in group.names for item in tensors[name]]


def _without_copies(ranks: Sequence[Sequence[_Group]]) -> tuple[list[list[_Group]], list[frozenset[str]]]:
    """What each rank writes, and what it leaves to others.

    Of a tensor that several ranks have alike, as replicas without ZeRO do, the one writes it that has least so far.
    """
    having = Counter((group.offsets, group.sizes) for groups in ranks for group in groups)
    copies: dict[tuple[str, Any, Any], list[int]] = {}
    for rank, groups in enumerate(ranks):
        for group in groups:
            if having[group.offsets, group.sizes] > 1:  # never under ZeRO-3, where there are most
                for name in group.names:
                    copies.setdefault((name, group.offsets, group.sizes), []).append(rank)
    load = [0] * len(ranks)
    left: list[set[str]] = [set() for _ in ranks]
    for (name, _, sizes), holders in copies.items():
        writer = min(holders, key=load.__getitem__)
        load[writer] += sum(map(math.prod, sizes))
        for rank in holders:
            if rank != writer:
                left[rank].add(name)
    kept = [
        [group._replace(names=tuple(name for name in group.names if name not in without)) for group in groups]
        for groups, without in zip(ranks, left, strict=True)
    ]
    return [[group for group in groups if group.names] for groups in kept], [frozenset(names) for names in left]


def _global_plan(ranks: Sequence[Sequence[_Group]]) -> Metadata:
    """Each tensor's chunks, in one list for all that are cut alike, and which of them each rank has."""
    groups = list(itertools.chain.from_iterable(ranks))
    chunks = [[_chunk(*chunk) for chunk in zip(group.offsets, group.sizes, strict=True)] for group in groups]
    parts: dict[str, list[int]] = {}  # of a tensor: the groups that it is in
    for number, group in enumerate(groups):
        for name in group.names:
            parts.setdefault(name, []).append(number)
    whole: dict[tuple[int, ...], TensorStorageMetadata] = {}
    tensors: dict[str, Any] = {}
    for name, numbers in parts.items():
        key = tuple(numbers)
        if key not in whole:
            whole[key] = _whole(name, [groups[n] for n in key], [chunk for n in key for chunk in chunks[n]])
        tensors[name] = dataclasses.replace(whole[key])
    names = {name: number for number, name in enumerate(tensors)}
    first = itertools.accumulate((len(own) for own in chunks), initial=0)
    numbered = iter(zip(groups, first, strict=False))
    planned = PlannedChunks(
        names=list(tensors),
        offsets=[chunk.offsets for own in chunks for chunk in own],
        ranks=[_rank_chunks(itertools.islice(numbered, len(own)), names) for own in ranks],
    )
    return Metadata(tensors, planner_data={name: (name,) for name in tensors}, storage_data=planned)


def _chunk(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


def _whole(name: str, groups: Sequence[_Group], chunks: list[ChunkStorageMetadata]) -> TensorStorageMetadata:
    shape, dtype = groups[0].shape, groups[0].dtype
    offsets = [chunk for group in groups for chunk in group.offsets]
    sizes = [chunk for group in groups for chunk in group.sizes]
    alike = all((group.shape, group.dtype) == (shape, dtype) for group in groups)
    if not alike or not covers_exactly(shape, offsets, sizes):
        raise CheckpointError(f"{name}: what the ranks have of it does not cover {shape} exactly; nothing is saved")
    return TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), chunks)


def _rank_chunks(groups: Iterator[tuple[_Group, int]], numbers: dict[str, int]) -> RankChunks:
    names: list[NDArray[np.int32]] = []
    offsets: list[NDArray[np.int32]] = []
    for group, first in groups:
        chunks = len(group.offsets)
        names.append(np.array([numbers[name] for name in group.names], dtype=np.int32).repeat(chunks))
        offsets.append(np.tile(np.arange(first, first + chunks, dtype=np.int32), len(group.names)))
    empty = np.empty(0, dtype=np.int32)
    return RankChunks(np.concatenate([empty, *names]), np.concatenate([empty, *offsets]))


class TensorPlanner(DefaultLoadPlanner):
    """Loads tensors, and never unpickles anything else. Each rank plans for itself.

    Args:
        beat: called with each part of a tensor that is loaded.

    Raises:
        CheckpointError: in DCP's wrapping, a tensor is not in the checkpoint, or has another shape there.
    """

    def __init__(self, beat: Callable[[str], None] = lambda activity: None) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._beat = beat
        self._items: list[ReadItem] = []

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None, "DCP sets the planner up first"
        corners: dict[int, _Corners] = {}  # by the list of chunks, which tensors that are cut alike share
        self._items = []
        for name, tensor in self.state_dict.items():
            stored = self.metadata.state_dict_metadata.get(name)
            if not isinstance(stored, TensorStorageMetadata) or stored.size != tensor.size():
                raise CheckpointError(f"{name}: is not stored in the shape {tuple(tensor.size())}")
            key = id(stored.chunks)
            if key not in corners:
                corners[key] = _Corners.of(stored.chunks, len(stored.size))
            self._items += _read_items(name, _create_chunk_list(tensor), stored.chunks, corners[key])
        return LoadPlan([])

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, new_plan: LoadPlan) -> LoadPlan:
        return dataclasses.replace(new_plan, items=self._items)

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        self._beat(f"loading {read_item.storage_index.fqn}")

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> NoReturn:
        raise CheckpointError(f"{read_item.storage_index.fqn}: is no tensor; a checkpoint holds nothing else")


class _Corners(NamedTuple):
    """Where chunks begin and end, [chunk, dimension] each."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, chunks: Sequence[ChunkStorageMetadata], dimensions: int) -> "_Corners":
        starts = np.array([c.offsets for c in chunks], dtype=np.int64).reshape(len(chunks), dimensions)
        return cls(starts, starts + np.array([c.sizes for c in chunks], dtype=np.int64).reshape(starts.shape))


def _read_items(
    name: str, wanted: Sequence[ChunkStorageMetadata], stored: Sequence[ChunkStorageMetadata], corners: _Corners
) -> Iterator[ReadItem]:
    """The overlap of each wanted chunk with each stored one."""
    for own_index, own in enumerate(wanted):
        begin = np.array(own.offsets, dtype=np.int64)
        starts = np.maximum(corners.starts, begin)
        lengths = np.minimum(corners.ends, begin + np.array(own.sizes, dtype=np.int64)) - starts
        for index in np.flatnonzero((lengths > 0).all(axis=1)).tolist():
            start, chunk = starts[index], stored[index]
            yield ReadItem(
                type=LoadItemType.TENSOR,
                dest_index=MetadataIndex(name, own.offsets, own_index),
                dest_offsets=torch.Size((start - begin).tolist()),
                storage_index=MetadataIndex(name, chunk.offsets, index),
                storage_offsets=torch.Size((start - corners.starts[index]).tolist()),
                lengths=torch.Size(lengths[index].tolist()),
            )
