"""Weights in Hugging Face's format as a storage of torch's distributed checkpoint: any layout reads its own slices of
them, straight from the safetensors files, without a conversion."""

from collections.abc import Sequence
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

from megatrain.config import ModelSection
from megatrain.errors import CheckpointError
from megatrain.model.huggingface import shapes, their_name

_KIND = "weight."  # what names of weights begin with in our checkpoints


class PretrainedReader(StorageReader):
    """Reads the weights of a model folder under the names of our checkpoints.

    Raises:
        CheckpointError: there are no safetensors files, one is damaged, or a tensor is missing or has another shape.
    """

    def __init__(self, folder: Path, model: ModelSection) -> None:
        self._folder = folder
        self._shapes = shapes(model)
        self._files: dict[str, Path] = {}  # of each of their names
        self._found: dict[str, tuple[int, ...]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self._look_into(file)
        self._check()

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
        """Of each tensor only the boxes that this rank needs, cast to what it holds."""
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            for item in plan.items:
                name = their_name(item.storage_index.fqn.removeprefix(_KIND))
                file = self._files[name]
                if file not in opened:
                    opened[file] = stack.enter_context(safe_open(file, framework="pt"))
                target = planner.resolve_tensor(item).detach()
                target.copy_(opened[file].get_slice(name)[_slices(item.storage_offsets, item.lengths)])
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _look_into(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    self._files[name] = file
                    self._found[name] = tuple(opened.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: is damaged, or not a safetensors file: {error}") from None

    def _check(self) -> None:
        if not self._files:
            raise CheckpointError(
                f"{self._folder}: has no *.safetensors. Weights in pickles (*.bin) are not read: save them anew with "
                "transformers, `model.save_pretrained(folder)`."
            )
        wrong = []
        for name, shape in self._shapes.items():
            theirs = their_name(name)
            if theirs not in self._found:
                wrong.append(f"{self._folder}: {theirs}: is missing")
            elif (found := self._found[theirs]) != shape:
                wrong.append(f"{self._folder}: {theirs}: has shape {found}, the model section says {shape}")
        if wrong:
            raise CheckpointError("\n".join(wrong))


def _slices(offsets: Sequence[int], lengths: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(offset, offset + length) for offset, length in zip(offsets, lengths, strict=True))
