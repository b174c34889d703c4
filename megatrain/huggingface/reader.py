"""Weights in Hugging Face's format as a storage of torch's distributed checkpoint: any layout reads its own slices of
them, straight from the safetensors files, without a conversion."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, StorageReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.futures import Future

from megatrain.base.errors import CheckpointError
from megatrain.config import ModelSection
from megatrain.huggingface.names import recognised, slices_of, their_tensor, unfolded, wholes_of_base
from megatrain.huggingface.weight_files import weight_files
from megatrain.model.architecture import row_of

_KIND = "weight."  # what names of weights begin with in our checkpoints


class PretrainedReader(StorageReader):
    """Reads the weights of a model folder under the names of our checkpoints.

    Raises:
        CheckpointError: as `weight_files.weight_files`; or a file has changed since.
    """

    def __init__(self, folder: Path, model: ModelSection) -> None:
        self._model = model
        self._files = weight_files(folder, model)
        wanted = wholes_of_base(model)
        self._stored, _ = recognised(self._files, wanted, model)
        self._shapes = {row.name: row.shape for name in self._stored for row in wanted[name].rows}

    @property
    def names(self) -> frozenset[str]:
        """Of the weights that the folder has, as the model calls them."""
        return frozenset(self._shapes)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is remembered between loads."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return Path(checkpoint_id).is_dir()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        entries: dict[str, Any] = {
            _KIND + name: TensorStorageMetadata(
                properties=TensorProperties(dtype=torch.float32),  # what a load makes of it
                size=torch.Size(shape),
                chunks=[ChunkStorageMetadata(offsets=torch.Size([0] * len(shape)), sizes=torch.Size(shape))],
            )
            for name, shape in self._shapes.items()
        }
        return Metadata(state_dict_metadata=entries, storage_data={}, storage_meta=StorageMeta())

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """All is known already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Of each tensor the chunks that this rank needs, cast to what it holds."""
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            for item in plan.items:
                row = row_of(self._model, item.storage_index.fqn.removeprefix(_KIND))
                theirs = their_tensor(row)
                target = planner.resolve_tensor(item).detach()
                name = self._stored[theirs.name]
                file = self._files[name]
                try:
                    if file not in opened:
                        opened[file] = stack.enter_context(safe_open(file, framework="pt"))
                    chunk = opened[file].get_slice(name)[slices_of(row, item.storage_offsets, item.lengths)]
                    target.copy_(unfolded(row, chunk.t() if theirs.transposed else chunk))
                except (SafetensorError, OSError) as error:
                    raise CheckpointError(f"{file}: {name}: cannot be read: {error}") from None
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done
