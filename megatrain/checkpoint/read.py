"""A checkpoint in one process, without the engine that wrote it: for export, generation and inspection."""

import warnings
from collections.abc import Collection
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from megatrain.base.errors import CheckpointError
from megatrain.checkpoint.planner import TensorPlanner
from megatrain.checkpoint.state import read_state
from megatrain.checkpoint.storage import SafeReader, cause_of
from megatrain.config import ModelSection
from megatrain.model.build import build_model


def read_tensors(folder: Path, *, kind: str | None = None, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Whole tensors by their names in the checkpoint, on the CPU.

    Args:
        kind: only this kind, such as "weight" or "exp_avg", and named without it.
        names: of that kind, only these.

    Raises:
        CheckpointError: the folder's description of its tensors is missing, damaged, or not one of ours, or a file is.
    """
    reader = SafeReader(folder)
    wanted = None if names is None else {f"{kind}.{name}" for name in names}
    tensors = {
        name: torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
        for name, stored in reader.tensors.items()
        if (kind is None or name.startswith(f"{kind}.")) and (wanted is None or name in wanted)
    }
    reader.expect(tensors)
    with warnings.catch_warnings():
        # one process is what is asked for
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            dcp.load(tensors, storage_reader=reader, planner=TensorPlanner(), no_dist=True)
        except CheckpointException as error:
            raise CheckpointError(cause_of(error, folder)) from None
    return tensors if kind is None else {name.removeprefix(f"{kind}."): tensor for name, tensor in tensors.items()}


def read_model(folder: Path) -> nn.Module:
    """The model with the checkpoint's fp32 weights.

    Raises:
        CheckpointError: as `read_tensors`; or the weights are not those of the model that state.json describes.
    """
    return model_of(folder, read_state(folder).model, read_tensors(folder, kind="weight"))


def model_of(folder: Path, config: ModelSection, weights: dict[str, Tensor]) -> nn.Module:
    """A model with these weights.

    Raises:
        CheckpointError: they are not its own.
    """
    if config.ties_head and "embedding.weight" in weights:
        weights["head.weight"] = weights["embedding.weight"]
    if config.num_hidden_layers > len(weights):  # or building it would take for ever
        raise _other_model(folder, f"{len(weights)} weights are too few for {config.num_hidden_layers:,} layers")
    try:
        with torch.device("meta"):
            model = build_model(config)
    except (RuntimeError, ValueError, OverflowError, TypeError) as error:  # of sizes that no tensor can have
        raise _other_model(folder, str(error)) from None
    for name, expected in model.state_dict().items():
        if name not in weights or weights[name].shape != expected.shape:
            stored = tuple(weights[name].shape) if name in weights else "not there"
            raise _other_model(folder, f"{name} is {stored}, and should be {tuple(expected.shape)}")
    if unknown := sorted(weights.keys() - model.state_dict().keys()):
        raise _other_model(folder, f"{unknown[0]} is not part of it")
    model.load_state_dict(weights, assign=True)
    return model


def _other_model(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{folder}: its weights are not those of the model in its state.json: {what}")
