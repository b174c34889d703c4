"""Weights under the names that `transformers` gives them, by the parameter table.

Where the two models are one architecture a weight changes its name; where `transformers` fuses several, or multiplies
from the other side, it is a block of a tensor of theirs, or transposed. No transformers here, only its names; and no
torch, so that the launcher can read what a folder holds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.model.architecture import ModelSection, parameter_table, row_of, rows
from megatrain.model.class_table import is_class_head
from megatrain.model.family import FAMILIES
from megatrain.model.parameter_row import HuggingFaceTensor, ParameterRow

if TYPE_CHECKING:
    from torch import Tensor

_COMPUTED = r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq"  # in old files; follows from rope_theta


class Whole(NamedTuple):
    """A tensor of theirs."""

    shape: tuple[int, ...]
    rows: tuple[ParameterRow, ...]  # what it is made of, in the order of its parts


def to_huggingface(state: Mapping[str, Tensor], config: ModelSection) -> dict[str, Tensor]:
    """Our whole weights under their names; any dtype. They share memory with ours unless fused or transposed.

    Args:
        state: every parameter by its name in the model. Tied word embeddings need no head.weight.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape than the configuration's.
    """
    if config.ties_head:
        state = {name: tensor for name, tensor in state.items() if name != "head.weight"}
    wanted = wholes(config)
    ours = {row.name: row.shape for whole in wanted.values() for row in whole.rows}
    _refuse_mistakes(state, ours, [name for name in state if name not in ours])
    state = {row.name: folded(row, state[row.name]) for whole in wanted.values() for row in whole.rows}
    return {name: joined(whole, state) for name, whole in wanted.items()}


def from_huggingface(state: Mapping[str, Tensor], config: ModelSection) -> dict[str, Tensor]:
    """The inverse of `to_huggingface`; everything shares memory with theirs.

    Raises:
        CheckpointError: a tensor is missing, unknown (such as a bias), or of another shape than the configuration's.
    """
    wanted = wholes(config)
    stored, unknown = recognised(state, wanted, config)
    theirs = {full: state[name] for full, name in stored.items()}
    _refuse_mistakes(theirs, {name: whole.shape for name, whole in wanted.items()}, unknown)
    where = {row.name: (theirs[name], row) for name, whole in wanted.items() for row in whole.rows}
    return {row.name: unfolded(row, _block(*where[row.name])) for row in parameter_table(config)}


def shapes(config: ModelSection) -> dict[str, tuple[int, ...]]:
    """Shape of each of our tensors, by our name; without the head's where word embeddings are tied."""
    return {row.name: row.shape for row in parameter_table(config)}


def wholes(config: ModelSection) -> dict[str, Whole]:
    """Each tensor of theirs by its name, in the order of the table.

    Raises:
        ConfigError: `transformers` has no such weight.
        ValueError: the table does not have all parts of one.
    """
    parts: dict[str, list[tuple[HuggingFaceTensor, ParameterRow]]] = {}
    for row in parameter_table(config):
        theirs = their_tensor(row)
        parts.setdefault(theirs.name, []).append((theirs, row))
    found = {}
    for name, pairs in parts.items():
        pairs.sort(key=lambda pair: pair[0].part)
        count = pairs[0][0].parts
        kinds = {(theirs.parts, theirs.transposed, row.shape) for theirs, row in pairs}
        if [theirs.part for theirs, _ in pairs] != list(range(count)) or len(kinds) > 1:
            raise ValueError(f"{name}: the table does not have its {count} parts, of one shape each")
        theirs, first = pairs[0]
        found[name] = Whole(theirs.whole(first.shape), tuple(row for _, row in pairs))
    return found


def wholes_of_base(config: ModelSection) -> dict[str, Whole]:
    """The tensors of theirs that training may start from: of a classifier, all but its head, which is its own."""
    return {name: whole for name, whole in wholes(config).items() if not is_class_head(config, whole.rows[0].name)}


def may_lack(config: ModelSection) -> set[str]:
    """Tensors of a classifier that a language model has not, so that a base may lack them: such as a pooler."""
    return set() if config.num_labels is None else wholes(config).keys() - wholes(_language_model(config)).keys()


def _language_model(config: ModelSection) -> ModelSection:
    return config.model_copy(update={"num_labels": None})


def count(config: ModelSection) -> int:
    """How many tensors of theirs that are, without a list of them."""
    return sum(row.count for row in rows(config) if their_tensor(row).part == 0)


def their_name(ours: str, config: ModelSection) -> str:
    """Of the tensor that holds one of ours.

    Raises:
        ConfigError: `transformers` has no such weight.
    """
    return their_tensor(row_of(config, ours)).name


def their_tensor(row: ParameterRow) -> HuggingFaceTensor:
    """Where it is in `transformers`.

    Raises:
        ConfigError: `transformers` has no such weight.
    """
    if row.theirs is None:
        raise ConfigError(f"{row.name}: has no name in transformers: models of this family are not exported")
    return row.theirs


def copies_of_embeddings(config: ModelSection) -> set[str]:
    """What files may hold beside tied word embeddings, of the same content."""
    tied = FAMILIES.get(config.family).huggingface_tied
    return set((tied(config) if callable(tied) else tied) if config.tie_word_embeddings else ())


def recognised(
    found: Collection[str], wanted: Collection[str], config: ModelSection
) -> tuple[dict[str, str], list[str]]:
    """The names that files give to what is wanted, by its full name; and those that nothing is known of.

    A file may lack the family's prefix throughout, and have old names. Buffers, and copies of tied word embeddings, are
    read past; for a classifier so are heads, of the vocabulary or of other classes.
    """
    family = FAMILIES.get(config.family)
    prefix, is_bare = _prefix(config), _is_bare(found, config)
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in (_COMPUTED, *family.huggingface_ignored)))
    copies = copies_of_embeddings(config)
    if config.num_labels is not None:
        copies = copies | wholes(_language_model(config)).keys()
        for kind in ("sequence", "token", "span"):
            copies |= wholes(config.model_copy(update={"classifies": kind})).keys()
    spans = config.model_copy(update={"num_labels": 2, "classifies": "span"})
    otherwise = {family.huggingface_exported(spans, name): name for name in wanted}
    stored, unknown = {}, []
    for name in found:
        candidates = [_renewed(name, family.huggingface_renamed)]
        if is_bare:
            candidates.append(prefix + candidates[0])
        candidates += [otherwise[candidates[0]]] if candidates[0] in otherwise else []
        full = next((candidate for candidate in candidates if candidate in wanted), None)
        if full is not None:
            stored[full] = name
        elif not any(candidate in copies or ignored.fullmatch(candidate) for candidate in candidates):
            unknown.append(name)
    return stored, unknown


def drawn(found: Collection[str], wanted: Collection[str], config: ModelSection) -> list[str]:
    """The tensors of the head, of those that are wanted, where files are of the bare model: it has no head, and a start
    draws them from its seed. Files that have a part of the head have lost the rest, and files of a whole model all."""
    stored, _ = recognised(found, wanted, config)
    pattern = re.compile("|".join(f"(?:{one})" for one in FAMILIES.get(config.family).huggingface_head))
    head = [name for name in wanted if pattern.fullmatch(name)]
    return head if _is_bare(found, config) and not stored.keys() & set(head) else []


def _prefix(config: ModelSection) -> str:
    prefix = FAMILIES.get(config.family).huggingface_prefix
    return prefix if isinstance(prefix, str) else prefix(config)


def _is_bare(found: Collection[str], config: ModelSection) -> bool:
    prefix = _prefix(config)
    return bool(prefix) and not any(name.startswith(prefix) for name in found)


def _renewed(name: str, endings: Mapping[str, str]) -> str:
    old = next((ending for ending in endings if name.endswith(ending)), None)
    return name if old is None else name.removesuffix(old) + endings[old]


def joined(whole: Whole, state: Mapping[str, Tensor]) -> Tensor:
    """A tensor of theirs from ours of the same shapes; contiguous where it is fused or transposed."""
    first = state[whole.rows[0].name]
    theirs = their_tensor(whole.rows[0])
    if theirs.parts == 1 and not theirs.transposed:
        return first if theirs.rows is None else first[: theirs.rows].contiguous()
    tensor = first.new_empty(whole.shape)
    for row in whole.rows:
        _block(tensor, row).copy_(state[row.name].detach())
    return tensor


def folded(row: ParameterRow, tensor: Tensor) -> Tensor:
    """Our weight with the factor that theirs holds."""
    factor = their_tensor(row).factor
    return tensor if factor == 1.0 else tensor * factor


def unfolded(row: ParameterRow, tensor: Tensor) -> Tensor:
    """A part of their weight without the factor that the model multiplies by."""
    factor = their_tensor(row).factor
    return tensor if factor == 1.0 else tensor / factor


def slices_of(row: ParameterRow, offsets: Iterable[int], lengths: Iterable[int]) -> tuple[slice, ...]:
    """Where a chunk of our weight is in their tensor, of which it is the transpose if theirs is transposed."""
    theirs = their_tensor(row)
    begins = list(offsets)
    begins[0] += theirs.part * row.shape[0]
    found = tuple(slice(begin, begin + length) for begin, length in zip(begins, lengths, strict=True))
    return found[::-1] if theirs.transposed else found


def _block(tensor: Tensor, row: ParameterRow) -> Tensor:
    """Our weight, as a view of their whole tensor; where ours is padded, a copy."""
    theirs = their_tensor(row)
    if theirs.rows is not None:
        padded = tensor.new_zeros(row.shape)
        padded[: theirs.rows] = tensor
        return padded
    if theirs.parts > 1:
        tensor = tensor[slices_of(row, [0] * len(row.shape), row.shape)]
    return tensor.t() if theirs.transposed else tensor


def _refuse_mistakes(
    state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], unknown: Iterable[str]
) -> None:
    wrong = [f"{name}: is missing" for name in wanted if name not in state]
    wrong += [f"{name}: is not a weight of this architecture" for name in unknown]
    for name, shape in wanted.items():
        if name in state and tuple(state[name].shape) != shape:
            wrong.append(f"{name}: has shape {tuple(state[name].shape)}, the model section says {shape}")
    if wrong:
        raise CheckpointError("\n".join(wrong))
