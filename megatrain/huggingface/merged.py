"""The whole weights behind a checkpoint that holds trained ones only: the others are its base's, and an adapter's
changes are made to them. A storage of torch's distributed checkpoint, so that any layout reads its own slices.

A base may be such a checkpoint itself, of a stage before; its weights are the merged ones.
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, StorageReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.futures import Future

from megatrain.adapters.registry import ADAPTERS
from megatrain.base.errors import CheckpointError
from megatrain.base.registry import load_object
from megatrain.checkpoint.local_shards import LocalShards
from megatrain.checkpoint.manifest import find_checkpoint
from megatrain.checkpoint.planner import TensorPlanner
from megatrain.checkpoint.read import model_of, read_tensors
from megatrain.checkpoint.state import WEIGHT, State, read_state
from megatrain.checkpoint.storage import SafeReader, cause_of
from megatrain.config import FinetuneConfig, ModelSection
from megatrain.config.file import load_own_config
from megatrain.huggingface.base_model import find_base
from megatrain.huggingface.config_json import is_pretrained
from megatrain.huggingface.reader import PretrainedReader
from megatrain.model.architecture import parameter_table, row_of
from megatrain.run.directory import locate


def weights_reader(folder: Path, model: ModelSection, verified: Callable[[Path], Path]) -> StorageReader:
    """Of a model in Hugging Face's format, or of a checkpoint.

    Args:
        model: whose weights are read, without an adapter.
        verified: a checkpoint that this one refers to -> the same; raises CheckpointError where it is damaged.

    Raises:
        CheckpointError: a file is missing or damaged, or the base of the checkpoint is gone or has changed.
    """
    if is_pretrained(folder):
        return PretrainedReader(folder, model)
    state = read_state(folder)
    if state.parameters == "all":
        return SafeReader(folder)
    base = base_of(folder, state)
    base = base if is_pretrained(base) else verified(base)
    return MergedReader(folder, state, weights_reader(base, state.model.merged, verified))


def base_of(folder: Path, state: State, also: Iterable[str] = ()) -> Path:
    """Where the weights lie that a checkpoint of trained ones refers to.

    Raises:
        CheckpointError: they are gone, or have changed.
    """
    if state.base is None:
        raise CheckpointError(f"{folder}: holds trained weights only, and does not say what of: it is of no use alone")
    return find_base(folder, state.base.path, state.base.sha256, (*also, *_named_by_run(folder)))


def _named_by_run(folder: Path) -> tuple[str, ...]:
    """Its base may have moved since the checkpoint was written, and the run been told so."""
    file = locate(folder)[0].config
    config = load_own_config(file) if file.is_file() else None
    return (config.finetune.base,) if isinstance(config, FinetuneConfig) else ()


class MergedReader(StorageReader):
    """Reads under the names of the merged model.

    Args:
        folder: a checkpoint of trained weights.
        base: of the others.
    """

    def __init__(self, folder: Path, state: State, base: StorageReader) -> None:
        self._folder = folder
        self._own = SafeReader(folder)
        self._base = base
        self._adapter = state.model.adapter
        self._added: dict[str, list[str]] = {}  # names of an adapter's weights, by that of the weight they change
        for row in parameter_table(state.model):
            if row.of_adapter and not state.model.has_lasting_adapter:
                self._added.setdefault(f"{row.name.rpartition('.')[0]}.weight", []).append(row.name)
        self._names = {f"{WEIGHT}.{row.name}" for row in parameter_table(state.model.complete)}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is remembered between loads."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return Path(checkpoint_id).is_dir()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        own = self._own.read_metadata().state_dict_metadata
        entries = {**self._base.read_metadata().state_dict_metadata, **own}
        entries = {name: entry for name, entry in entries.items() if name in self._names}
        return Metadata(state_dict_metadata=entries, storage_data={}, storage_meta=StorageMeta())

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """All is known already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Of each tensor the chunks that this rank needs; the adapter's weights that change them as wholes."""
        own = [item for item in plan.items if item.storage_index.fqn in self._own.tensors]
        rest = [item for item in plan.items if item.storage_index.fqn not in self._own.tensors]
        changed = [item for item in rest if _weight(item) in self._added]
        self._own.read_data(LoadPlan(own), planner).wait()
        self._base.read_data(LoadPlan([item for item in rest if _weight(item) not in self._added]), planner).wait()
        names = {name for item in changed for name in self._added[_weight(item)]}
        added = read_tensors(self._folder, kind=WEIGHT, names=names) if names else {}
        merging: Any = _Merging(planner, lambda item, part: self._merged(item, part, added))  # what readers use of one
        self._base.read_data(LoadPlan(changed), merging).wait()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _merged(self, item: ReadItem, part: Tensor, added: dict[str, Tensor]) -> Tensor:
        assert self._adapter is not None
        merge = load_object(ADAPTERS.get(self._adapter.name).merge)
        tensors = {name.rpartition(".")[2]: added[name] for name in self._added[_weight(item)]}
        begins = item.storage_index.offset or [0] * len(item.lengths)
        offsets = [begin + inside for begin, inside in zip(begins, item.storage_offsets, strict=True)]
        whole = partial(self._rows_of_base, _weight(item), offsets[0], item.lengths[0])
        merged: Tensor = merge(self._adapter, tensors, part.float(), offsets, whole)
        return merged

    def _rows_of_base(self, name: str, first: int, count: int) -> Tensor:
        """fp32 [count, in] of a weight, which the layout that reads may have cut along its inputs."""
        stored: Any = self._base.read_metadata().state_dict_metadata[f"{WEIGHT}.{name}"]
        rows = torch.empty(count, stored.size[1])
        _load_alone(
            {f"{WEIGHT}.{name}": LocalShards(rows.view(-1), stored.size, first * stored.size[1], None)}, self._base
        )
        return rows


def _weight(item: ReadItem) -> str:
    return item.storage_index.fqn.removeprefix(f"{WEIGHT}.")


class _Merging:
    """Stands between a reader and the planner of a load: what is read is merged in fp32, and cast once."""

    def __init__(self, planner: LoadPlanner, merged: Callable[[ReadItem, Tensor], Tensor]) -> None:
        self._planner = planner
        self._merged = merged

    def resolve_tensor(self, item: ReadItem) -> Tensor:
        return torch.empty(tuple(item.lengths))

    def commit_tensor(self, item: ReadItem, tensor: Tensor) -> None:
        target = self._planner.resolve_tensor(item).detach()
        target.copy_(self._merged(item, tensor))
        self._planner.commit_tensor(item, target)


def _load_alone(tensors: Mapping[str, Tensor], reader: StorageReader) -> None:
    """Without other ranks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # as is asked for
        dcp.load(dict(tensors), storage_reader=reader, planner=TensorPlanner(), no_dist=True)


def weights_of_base(folder: Path, state: State) -> Callable[[str], Tensor]:
    """Of a checkpoint of trained weights: gives a whole weight of its base by name, fp32 on the CPU.

    Raises:
        CheckpointError: a file is missing or damaged, or the base of the checkpoint is gone or has changed.
    """
    base = base_of(folder, state)
    base = base if is_pretrained(base) else find_checkpoint(base)
    reader = weights_reader(base, state.model.merged, find_checkpoint)

    def weight(name: str) -> Tensor:
        tensors = {f"{WEIGHT}.{name}": torch.empty(row_of(state.model, name).shape)}
        try:
            _load_alone(tensors, reader)
        except CheckpointException as error:
            raise CheckpointError(cause_of(error, base)) from None
        return tensors[f"{WEIGHT}.{name}"]

    return weight


class MergedWeights:
    """Whole weights of checkpoints of any kind, on the CPU; what they refer to is verified once."""

    def __init__(self) -> None:
        self._readers: dict[Path, StorageReader] = {}

    def read(self, folder: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """By name; fp32 of a checkpoint of trained weights.

        Args:
            names: only these, as far as they are there.

        Raises:
            CheckpointError: as `read_tensors`; or the base is gone, or has changed.
        """
        state = read_state(folder)
        if state.parameters == "all":
            return read_tensors(folder, kind=WEIGHT, names=names)
        if folder not in self._readers:
            self._readers[folder] = weights_reader(folder, state.model.merged, find_checkpoint)
        wanted = (row for row in parameter_table(state.model.complete) if names is None or row.name in names)
        tensors = {f"{WEIGHT}.{row.name}": torch.empty(row.shape) for row in wanted}
        try:
            _load_alone(tensors, self._readers[folder])
        except CheckpointException as error:
            raise CheckpointError(cause_of(error, folder)) from None
        return {name.removeprefix(f"{WEIGHT}."): tensor for name, tensor in tensors.items()}


def read_merged_model(folder: Path) -> nn.Module:
    """As `read_model`, of a checkpoint of any kind."""
    return model_of(folder, read_state(folder).model.complete, MergedWeights().read(folder))
