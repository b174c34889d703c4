"""Weights under the names that `transformers` gives them, by the parameter table.

Where the two models are one architecture a tensor only changes its name: none is transposed, split or permuted. No
transformers here, only its names; and no torch, so that the launcher can read what a folder holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.model.architecture import ModelSection, ParameterRow, parameter_table, row_of, rows

if TYPE_CHECKING:
    from torch import Tensor

TIED = "lm_head.weight"  # the embedding's, where word embeddings are tied: stored once, as the embedding
_COMPUTED = "rotary_emb.inv_freq"  # a buffer in files of old versions, which follows from rope_theta


def to_huggingface(state: Mapping[str, Tensor], config: ModelSection) -> dict[str, Tensor]:
    """Our whole weights under their names, which share memory with ours; any dtype.

    Args:
        state: every parameter by its name in the model. Tied word embeddings need no head.weight.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape than the configuration's.
    """
    return _renamed(state, {row.name: (_theirs(row), row) for row in parameter_table(config)}, config, "head.weight")


def from_huggingface(state: Mapping[str, Tensor], config: ModelSection) -> dict[str, Tensor]:
    """The inverse of `to_huggingface`.

    Raises:
        CheckpointError: a tensor is missing, unknown (such as a bias), or of another shape than the configuration's.
    """
    needed = {name: tensor for name, tensor in state.items() if not name.endswith(_COMPUTED)}
    return _renamed(needed, {_theirs(row): (row.name, row) for row in parameter_table(config)}, config, TIED)


def shapes(config: ModelSection) -> dict[str, tuple[int, ...]]:
    """Shape of each of our tensors, by our name; without the head's where word embeddings are tied."""
    return {row.name: row.shape for row in parameter_table(config)}


def count(config: ModelSection) -> int:
    """How many tensors that are, without a list of them."""
    return sum(row.count for row in rows(config))


def their_name(ours: str, config: ModelSection) -> str:
    """Of one of our tensors.

    Raises:
        ConfigError: `transformers` has no such weight.
    """
    return _theirs(row_of(config, ours))


def _theirs(row: ParameterRow) -> str:
    if row.huggingface is None:
        raise ConfigError(f"{row.name}: has no name in transformers: models of this family are not exported")
    return row.huggingface


def _renamed(
    state: Mapping[str, Tensor], names: Mapping[str, tuple[str, ParameterRow]], config: ModelSection, tied: str
) -> dict[str, Tensor]:
    if config.tie_word_embeddings:
        state = {name: tensor for name, tensor in state.items() if name != tied}
    wrong = list(_mistakes(state, names))
    if wrong:
        raise CheckpointError("\n".join(wrong))
    return {new: state[old] for old, (new, _) in names.items()}


def _mistakes(state: Mapping[str, Tensor], names: Mapping[str, tuple[str, ParameterRow]]) -> Iterable[str]:
    yield from (f"{name}: is missing" for name in names if name not in state)
    yield from (f"{name}: is not a weight of this architecture" for name in state if name not in names)
    for name, (_, row) in names.items():
        if name in state and tuple(state[name].shape) != row.shape:
            yield f"{name}: has shape {tuple(state[name].shape)}, the model section says {row.shape}"
