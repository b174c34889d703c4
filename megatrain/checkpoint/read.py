"""A checkpoint in one process, without the engine that wrote it: for export, generation and inspection."""

import warnings
from collections.abc import Collection
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatrain.checkpoint.manifest import read_state
from megatrain.checkpoint.storage import SafeReader
from megatrain.config import ModelSection
from megatrain.model.transformer import Transformer


def read_tensors(folder: Path, *, kind: str | None = None, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Whole fp32 tensors by their names in the checkpoint, on the CPU.

    Args:
        kind: only this kind, such as "weight" or "exp_avg", and named without it.
        names: of that kind, only these.

    Raises:
        CheckpointError: the folder's description of its tensors is missing, damaged, or not one of ours.
    """
    reader = SafeReader(folder)
    stored = reader.read_metadata().state_dict_metadata
    wanted = None if names is None else {f"{kind}.{name}" for name in names}
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if isinstance(entry, TensorStorageMetadata)
        and (kind is None or name.startswith(f"{kind}."))
        and (wanted is None or name in wanted)
    }
    with warnings.catch_warnings():
        # one process is what is asked for
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors if kind is None else {name.removeprefix(f"{kind}."): tensor for name, tensor in tensors.items()}


def read_model(folder: Path) -> Transformer:
    """The model with the checkpoint's fp32 weights."""
    config = ModelSection.model_validate(read_state(folder)["model"])
    with torch.device("meta"):
        model = Transformer(config)
    weights = read_tensors(folder, kind="weight")
    if config.tie_word_embeddings:
        weights["head.weight"] = weights["embedding.weight"]
    model.load_state_dict(weights, assign=True)
    return model
