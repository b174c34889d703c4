"""Pieces of tensors, as DCP saves and loads them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from megatrain.checkpoint.chunks import Chunk, chunks_of
from megatrain.parallel.tensor_parallel import Shard

CHUNK_ELEMENTS = 16 * 1024 * 1024  # 64 MiB of fp32: a reader holds one chunk at a time


class LocalShards(torch.Tensor):
    """A flat piece of one (possibly tensor-parallel) tensor, seen as chunks of the whole tensor."""

    _flat: Tensor
    _chunks: dict[torch.Size, tuple[torch.Size, Tensor]]

    @staticmethod
    def __new__(cls, flat: Tensor, local_shape: torch.Size, start: int, shard: Shard | None) -> "LocalShards":
        """
        Args:
            flat: one-dimensional; shares memory with DeepSpeed's partition, so that loading writes in place.
            local_shape: of this rank's slice of the parameter.
            start: where `flat` begins in the slice's row-major order.
            shard: which slice it is; None where the slice is the whole.
        """
        whole, shift = list(local_shape), [0] * len(local_shape)
        if shard is not None:
            shift[shard.dim] = shard.index * local_shape[shard.dim]
            whole[shard.dim] *= shard.count
        self = torch.Tensor._make_wrapper_subclass(cls, torch.Size(whole), dtype=flat.dtype, device=flat.device)
        self._flat = flat
        self._chunks = {
            torch.Size(o + s for o, s in zip(chunk.offsets, shift, strict=True)): (
                torch.Size(chunk.sizes),
                _view(flat, chunk, start),
            )
            for chunk in chunks_of(local_shape, start, flat.numel(), limit=CHUNK_ELEMENTS)
        }
        return self

    def parts(self) -> Iterator[tuple[torch.Size, Tensor]]:
        """(where it begins in the whole tensor, a view of DeepSpeed's memory) of each chunk."""
        return ((offset, view) for offset, (_, view) in self._chunks.items())

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"local shards are only saved and loaded; {func} is not for it")

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self._flat)
        return [
            WriteItem(
                index=MetadataIndex(name, offset),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offset, size),
                    properties=properties,
                    size=self.shape,
                ),
            )
            for offset, (size, _view_of_flat) in self._chunks.items()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offset, size) for offset, (size, _) in self._chunks.items()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self._chunks[index.offset][1]


def _view(flat: Tensor, chunk: Chunk, start: int) -> Tensor:
    return flat.narrow(0, chunk.flat_start - start, chunk.numel).view(chunk.sizes)
