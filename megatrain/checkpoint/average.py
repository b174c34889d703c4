"""The mean of the weights of a run's last checkpoints (arXiv 2306.03241), one tensor at a time."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from torch import Tensor

from megatrain.base.errors import CheckpointError
from megatrain.checkpoint.manifest import find_checkpoint, verify
from megatrain.checkpoint.read import read_tensors
from megatrain.checkpoint.state import read_state
from megatrain.run.directory import locate, parse_step

Reader = Callable[[Path, Collection[str]], dict[str, Tensor]]


def last_checkpoints(path: Path, count: int, *, warn: Callable[[str], None] = lambda line: None) -> list[Path]:
    """The last `count` checkpoints that verify, of one model, the newest first.

    Args:
        path: a run, or a checkpoint: then that one and those before it.
        warn: told of each that is passed over because it is damaged.

    Raises:
        CheckpointError: there are fewer, their models differ, or the one that was named is damaged.
    """
    run, named = locate(path)
    if named is not None:
        find_checkpoint(path)  # nothing else stands in for what was named
    last = parse_step(named) if named is not None else None
    found: list[Path] = []
    for step in reversed([step for step in run.steps() if last is None or step <= last]):
        if len(found) == count:
            break
        if damage := verify(run.step(step)):
            warn(f"{damage[0]}; left out")
        else:
            found.append(run.step(step))
    if len(found) < count:
        raise CheckpointError(
            f"{path}: {count} checkpoints are to be averaged, and {len(found)} verify. "
            "Average fewer, or keep more in the next run (checkpoint.keep_last)."
        )
    _check_models(found)
    return found


def read_mean(folders: Sequence[Path], names: Collection[str], read: Reader | None = None) -> dict[str, Tensor]:
    """fp32 means of weights over checkpoints, on the CPU; two whole tensors more than the result are in memory.

    Args:
        read: (checkpoint, names) -> its weights; default: those that it holds itself.

    Raises:
        CheckpointError: as `read_tensors`; or a checkpoint lacks one, or has it in another shape.
    """
    read = read or _read
    return {name: _mean(folders, name, read) for name in names}


def _mean(folders: Sequence[Path], name: str, read: Reader) -> Tensor:
    total = _weight(folders[0], name, read).float()
    for folder in folders[1:]:
        more = _weight(folder, name, read)
        if more.shape != total.shape:
            raise CheckpointError(f"{folder}: {name} has shape {tuple(more.shape)}, and not {tuple(total.shape)}")
        total += more
    return total.div_(len(folders))


def _read(folder: Path, names: Collection[str]) -> dict[str, Tensor]:
    return read_tensors(folder, kind="weight", names=names)


def _weight(folder: Path, name: str, read: Reader) -> Tensor:
    found = read(folder, [name])
    if name not in found:
        raise CheckpointError(f"{folder}: has no tensor {name}")
    return found[name]


def _check_models(folders: Sequence[Path]) -> None:
    newest = read_state(folders[0]).model
    for folder in folders[1:]:
        model = read_state(folder).model
        if model != newest:
            fields = [name for name in type(newest).model_fields if getattr(model, name, None) != getattr(newest, name)]
            field = fields[0] if fields else "family"
            raise CheckpointError(
                f"{folder}: has model.{field}={getattr(model, field, None)!r}, {folders[0]} has "
                f"{getattr(newest, field)!r}: weights of different models have no mean."
            )
