"""What a rank owns of the weights and of the optimizer's state, as chunks of globally named tensors.

DeepSpeed keeps fp32 weights and moments in flat partitions whose layout depends on the ZeRO stage; each function that
reads one of them stands in `_ranges_*` below and nowhere else. `LocalShards` present such a piece to DCP as chunks of
the whole, unsharded tensor, so that a checkpoint knows nothing of the layout that wrote it (`local_shards.py`).

Keys: "weight.<parameter>" (fp32), and for every state of the optimizer that has the weight's shape, such as Adam's two
moments, "<state>.<parameter>".
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from megatrain.base.errors import ConfigError
from megatrain.checkpoint.local_shards import LocalShards
from megatrain.checkpoint.state import WEIGHT, Parameters
from megatrain.parallel.matrix_exchange import Unit
from megatrain.parallel.matrix_plan import Piece
from megatrain.parallel.tensor_parallel import shard_of
from megatrain.parallel.whole_sums import WholeTensors


@dataclass(frozen=True, slots=True)
class _FlatRange:
    """What this rank owns of one parameter: a flat range from `start` on."""

    name: str
    parameter: nn.Parameter
    shape: torch.Size  # of this rank's tensor-parallel slice
    start: int
    tensors: dict[str, Tensor]  # by kind: the fp32 weight and the optimizer's state, each flat
    master: Tensor  # what the optimizer updates, which may hold ranges of many parameters
    offset: int = 0  # of this range in it
    replicated: bool = False  # whether every data-parallel rank holds the same


def local_shards(
    engine: DeepSpeedEngine, *, parameters: Parameters = "all", weights_only: bool = False, for_saving: bool = False
) -> dict[str, LocalShards]:
    """Everything that this rank must save, or be given, by global name.

    Args:
        parameters: "trained" leaves frozen ones out.
        weights_only: leave the optimizer's state out.
        for_saving: leave out what another rank saves already.
    """
    found = {}
    for one in _ranges(engine) if parameters == "trained" else chain(_ranges(engine), _ranges_frozen(engine)):
        shard = shard_of(one.parameter)
        if for_saving and shard is None and engine.mpu.get_model_parallel_rank() != 0:
            continue
        if for_saving and one.replicated and engine.mpu.get_data_parallel_rank() != 0:
            continue
        for kind, flat in one.tensors.items():
            if flat.numel() and (kind == WEIGHT or not weights_only):
                found[f"{kind}.{one.name}"] = LocalShards(flat, one.shape, one.start, shard)
    return found


def create_optimizer_state(engine: DeepSpeedEngine) -> None:
    """Make the state that an optimizer would make in its first step: zero gradients at rate zero, of weights of zero.

    DeepSpeed takes such a step itself for some stages, of weights that have no values yet: an optimizer whose decay is
    part of the gradient, such as SGD, would keep those in its state. All stages begin again here, and count from zero.
    The weights are left at zero.
    """
    optimizer = _torch_optimizer(engine)
    masters = [master for master, _ in _masters(engine)]
    rates = [group["lr"] for group in optimizer.param_groups]
    kept = [p.grad for p in masters]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.state.clear()
    for p in masters:
        p.data.zero_()
        p.grad = torch.zeros_like(p)
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
        for sub_group in range(len(masters)):
            engine.optimizer._optimizer_step(sub_group)
    else:
        optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for p, gradient in zip(masters, kept, strict=True):
        p.grad = gradient
    set_optimizer_step(engine, 0)


def check_optimizer_state(engine: DeepSpeedEngine, names: Sequence[str], of_matrices: Sequence[str]) -> None:
    """
    Args:
        names: of the state tensors that a checkpoint is to hold, each of its weight's shape.
        of_matrices: of those of the groups that have `hidden_matrix`.

    Raises:
        ConfigError: the optimizer keeps others: they would be lost in a resume.
    """
    optimizer = _torch_optimizer(engine)
    kind = type(optimizer).__name__
    for weight, group in _masters(engine):
        state = optimizer.state.get(weight, {})
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and name != "step"}
        for name, value in tensors.items():
            if value.shape != weight.shape:
                raise ConfigError(
                    f"optimizer.name: {kind} keeps {name} of shape {tuple(value.shape)} for a weight of "
                    f"{tuple(weight.shape)}: a checkpoint holds state of a weight's shape only. Use another optimizer"
                )
        expected = of_matrices if group.get("hidden_matrix") or group.get("factored") else names
        if set(tensors) != set(expected):
            raise ConfigError(
                f"optimizer.name: {kind} keeps {', '.join(sorted(tensors)) or 'nothing'}, but is registered with the "
                f"state {', '.join(expected) or '()'}: name what it keeps in its OptimizerSpec"
            )


def keep_start(engine: DeepSpeedEngine, name: str) -> None:
    """Copy the weights as they are into a state of the optimizer."""
    for one in _ranges(engine):
        one.tensors[name].copy_(one.tensors[WEIGHT])


def matrix_units(engine: DeepSpeedEngine) -> list[list[Unit]]:
    """What this rank owns of the hidden matrices, by the calls of the optimizer that a step makes: one for each group
    under ZeRO 2 and 3, which update one at a time, else one for all."""
    return _units(engine, lambda group: bool(group["hidden_matrix"]))


def whole_units(engine: DeepSpeedEngine) -> list[list[tuple[Unit, list[bool]]]]:
    """As `matrix_units`, of all weights; and whether this rank is the one that counts, of those that hold a piece."""
    first_slice = engine.mpu.get_model_parallel_rank() == 0
    partitioned = engine.zero_optimization_stage() > 0
    first_replica = partitioned or engine.mpu.get_data_parallel_rank() == 0
    return [
        [
            (unit, [first_replica and (first_slice or piece.shard is not None) for piece in unit.pieces])
            for unit in units
        ]
        for units in _units(engine, lambda group: True)
    ]


def factor_shards(tensors: WholeTensors, names: tuple[str, str]) -> Iterator[tuple[str, LocalShards]]:
    """Rows and columns of an optimizer's factored state, by global name. Every rank holds them whole."""
    for weight, *factors in tensors.named_factors():
        for name, factor in zip(names, factors, strict=True):
            yield f"{name}.{weight}", LocalShards(factor, factor.shape, 0, None)


def _units(engine: DeepSpeedEngine, wanted: Callable[[dict[str, Any]], bool]) -> list[list[Unit]]:
    pieces: dict[int, list[Piece]] = {}
    for one in _ranges(engine):
        if numel := one.tensors[WEIGHT].numel():
            piece = Piece(one.name, tuple(one.shape), shard_of(one.parameter), one.start, numel, one.offset)
            pieces.setdefault(id(one.master), []).append(piece)
    units = [Unit(p, tuple(pieces.get(id(p), ()))) for p, group in _masters(engine) if wanted(group)]
    one_at_a_time = isinstance(engine.optimizer, DeepSpeedZeroOptimizer | DeepSpeedZeroOptimizer_Stage3)
    return [[unit] for unit in units] if one_at_a_time else [units]


def _masters(engine: DeepSpeedEngine) -> list[tuple[Tensor, dict[str, Any]]]:
    """Every tensor that the optimizer updates, with its parameter group."""
    groups = _torch_optimizer(engine).param_groups
    zero = engine.optimizer
    if isinstance(zero, DeepSpeedZeroOptimizer_Stage3):  # its groups are empty between steps
        of_groups = (groups[zero.sub_group_to_group_id[index]] for index in range(len(zero.fp16_groups)))
        return list(zip(zero.fp32_partitioned_groups_flat, of_groups, strict=True))
    return [(p, group) for group in groups for p in group["params"]]


def master_device(engine: DeepSpeedEngine) -> torch.device:
    """Where the optimizer updates: the engine's device, or the host where it is offloaded."""
    masters = _masters(engine)
    return masters[0][0].device if masters else engine.device


def set_optimizer_step(engine: DeepSpeedEngine, step: int) -> None:
    """The number of updates taken, which Adam's bias correction depends on."""
    for state in _torch_optimizer(engine).state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"].fill_(float(step))
        elif "step" in state:
            state["step"] = step


def refresh_model_weights(engine: DeepSpeedEngine) -> None:
    """After fp32 weights were written: bring the weights that the model computes with up to date."""
    optimizer = engine.optimizer
    if isinstance(optimizer, BF16_Optimizer | DeepSpeedZeroOptimizer):
        optimizer.update_lp_params()
    elif isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        _refresh_stage3(engine)
    elif isinstance(optimizer, FP16_UnfusedOptimizer):
        for low, high in _unfused_pairs(optimizer):
            low.data.copy_(high.data)


def _torch_optimizer(engine: DeepSpeedEngine) -> torch.optim.Optimizer:
    optimizer = engine.optimizer
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _ranges(engine: DeepSpeedEngine) -> Iterator[_FlatRange]:
    readers: dict[type, Callable[[DeepSpeedEngine], Iterator[_FlatRange]]] = {
        DeepSpeedZeroOptimizer_Stage3: _ranges_stage3,
        DeepSpeedZeroOptimizer: _ranges_flat,
        BF16_Optimizer: _ranges_flat,
        FP16_UnfusedOptimizer: _ranges_unfused,
        torch.optim.Optimizer: _ranges_plain,
    }
    for kind, reader in readers.items():
        if isinstance(engine.optimizer, kind):
            return reader(engine)
    raise TypeError(f"no reader for the state of {type(engine.optimizer).__name__}")


def _trained(engine: DeepSpeedEngine) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def _with_state(weight: Tensor, state: dict[str, Any], start: int, numel: int) -> dict[str, Tensor]:
    """The weight and every state of its shape, each narrowed to one parameter's range of the flat partition."""
    alike = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.shape == weight.shape}
    return {kind: flat.detach().view(-1).narrow(0, start, numel) for kind, flat in {WEIGHT: weight, **alike}.items()}


def _ranges_plain(engine: DeepSpeedEngine) -> Iterator[_FlatRange]:
    """fp32 without ZeRO: the parameters are the weights."""
    for name, p in _trained(engine):
        yield _FlatRange(name, p, p.shape, 0, _with_state(p, engine.optimizer.state[p], 0, p.numel()), p)


def _unfused_pairs(optimizer: FP16_UnfusedOptimizer) -> Iterator[tuple[Tensor, Tensor]]:
    for low_group, high_group in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        yield from zip(low_group, high_group, strict=True)


def _ranges_unfused(engine: DeepSpeedEngine) -> Iterator[_FlatRange]:
    """bf16 without ZeRO: an fp32 copy of each parameter."""
    masters = {id(low): high for low, high in _unfused_pairs(engine.optimizer)}
    for name, p in _trained(engine):
        master = masters[id(p)]
        state = engine.optimizer.optimizer.state[master]
        yield _FlatRange(name, p, p.shape, 0, _with_state(master, state, 0, p.numel()), master)


def _ranges_flat(engine: DeepSpeedEngine) -> Iterator[_FlatRange]:
    """ZeRO 1 and 2: a rank owns a range of each group of parameters laid end to end."""
    optimizer = engine.optimizer
    bf16 = isinstance(optimizer, BF16_Optimizer)
    partitions = optimizer.fp32_groups_flat_partition if bf16 else optimizer.single_partition_of_fp32_groups
    for name, p in _trained(engine):
        mapping = getattr(p, "_hp_mapping", None)
        if mapping is None:  # nothing of it lies in this rank's partition
            continue
        partition = partitions[mapping.param_group_index]
        address = mapping.hp_fragment_address
        tensors = _with_state(partition, optimizer.optimizer.state[partition], address.start, address.numel)
        yield _FlatRange(name, p, p.shape, mapping.lp_fragment_address.start, tensors, partition, address.start)


def _ranges_stage3(engine: DeepSpeedEngine) -> Iterator[_FlatRange]:
    """ZeRO 3: a rank owns an equal part of every parameter; the last parts are padded."""
    optimizer = engine.optimizer
    rank = torch.distributed.get_rank(optimizer.dp_process_group)
    for name, p in _trained(engine):
        ds: Any = p  # carries what DeepSpeed notes of a partitioned parameter
        group, offset, length = optimizer.grad_position[optimizer.get_param_id(p)]
        partition = optimizer.fp32_partitioned_groups_flat[group]
        start = min(rank * ds.ds_tensor.ds_numel, ds.ds_numel)
        numel = min(length, ds.ds_numel - start)
        tensors = _with_state(partition, optimizer.optimizer.state[partition], offset, numel)
        yield _FlatRange(name, p, ds.ds_shape, start, tensors, partition, offset)


def _ranges_frozen(engine: DeepSpeedEngine) -> Iterator[_FlatRange]:
    """Parameters that are not trained, in the dtype that the model computes in: ZeRO 3 partitions them as well, the
    other stages leave them whole on every rank."""
    for name, p in engine.module.named_parameters():
        ds: Any = p
        if p.requires_grad:
            continue
        if not hasattr(ds, "ds_tensor"):
            yield _FlatRange(name, p, p.shape, 0, {WEIGHT: p.detach().view(-1)}, p, replicated=True)
            continue
        rank, part = torch.distributed.get_rank(engine.optimizer.dp_process_group), ds.ds_tensor
        start = min(rank * part.ds_numel, ds.ds_numel)
        numel = min(part.ds_numel, ds.ds_numel - start)
        yield _FlatRange(name, p, ds.ds_shape, start, {WEIGHT: part.detach().view(-1).narrow(0, 0, numel)}, p)


def _refresh_stage3(engine: DeepSpeedEngine) -> None:
    optimizer = engine.optimizer
    low_flat, low_parts = optimizer.fp16_partitioned_groups_flat, optimizer.fp16_partitioned_groups
    for low, high, parts in zip(low_flat, optimizer.fp32_partitioned_groups_flat, low_parts, strict=True):
        low.data.copy_(high.data)
        for part, updated in zip(parts, optimizer.unflatten(low, parts), strict=True):
            part.data = updated.data
    if optimizer.persistent_parameters:  # small ones stay gathered, and would keep their old values
        optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
    # Second copies (hpZ) are gathered where there are any, and DeepSpeed forgets those of trained weights alone, after
    # an update: these are of what was there before.
    for p in engine.module.parameters():
        p.ds_secondary_tensor = None
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def not_finite(pieces: Mapping[str, LocalShards]) -> list[str]:
    """Names of the pieces that hold a NaN or an infinity. Waits for the device once, and copies nothing."""
    if not pieces:
        return []
    largest = [torch.linalg.vector_norm(piece._flat, ord=math.inf) for piece in pieces.values()]  # NaN stays NaN
    device = largest[0].device  # frozen weights stay on theirs where the others are on the host
    finite: list[bool] = torch.isfinite(torch.stack([one.to(device) for one in largest])).tolist()
    return [name for name, well in zip(pieces, finite, strict=True) if not well]
