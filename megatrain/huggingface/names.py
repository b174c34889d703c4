"""Weights in and out, under the names that Hugging Face's LlamaForCausalLM gives them.

The two models are one architecture, and both turn channel pairs (i, i + K/2) in rotary embeddings, so that a tensor
only changes its name: none is transposed, split or permuted. No transformers here, only its names; and no torch, so
that the launcher can read what a folder holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from megatrain.base.errors import CheckpointError
from megatrain.config import ModelSection

if TYPE_CHECKING:
    from torch import Tensor

# Ours -> theirs; {} stands for the number of a block.
NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "blocks.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blocks.{}.attention.query.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blocks.{}.attention.key.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blocks.{}.attention.value.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blocks.{}.attention.output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.{}.mlp_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.{}.mlp.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blocks.{}.mlp.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blocks.{}.mlp.down.weight": "model.layers.{}.mlp.down_proj.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}

_TIED = "head.weight"  # the embedding's, where word embeddings are tied: stored once, as the embedding
_COMPUTED = "rotary_emb.inv_freq"  # a buffer in files of old versions, which follows from rope_theta


def to_huggingface(state: Mapping[str, Tensor], config: ModelSection) -> dict[str, Tensor]:
    """Our whole weights under their names, which share memory with ours; any dtype.

    Args:
        state: every parameter by its name in `Transformer`. Tied word embeddings need no head.weight.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape than the configuration's.
    """
    return _renamed(state, config, dict(_pairs(config)))


def from_huggingface(state: Mapping[str, Tensor], config: ModelSection) -> dict[str, Tensor]:
    """The inverse of `to_huggingface`.

    Raises:
        CheckpointError: a tensor is missing, unknown (such as a bias), or of another shape than the configuration's.
    """
    needed = {name: tensor for name, tensor in state.items() if not name.endswith(_COMPUTED)}
    return _renamed(needed, config, {theirs: ours for ours, theirs in _pairs(config)})


def shapes(config: ModelSection) -> dict[str, tuple[int, ...]]:
    """Shape of each of our tensors, by our name; without the head's where word embeddings are tied."""
    return {name: shape for name, shape in _shapes(config) if not (config.tie_word_embeddings and name == _TIED)}


def their_name(ours: str) -> str:
    """Of one of our tensors."""
    number = next((part for part in ours.split(".") if part.isdecimal()), None)
    return NAMES[ours.replace(f".{number}.", ".{}.", 1)].format(number)


def _pairs(config: ModelSection) -> Iterator[tuple[str, str]]:
    """(our name, their name) of every tensor of a model."""
    for ours, theirs in NAMES.items():
        numbers = range(config.num_hidden_layers) if "{}" in ours else (None,)
        yield from ((ours.format(number), theirs.format(number)) for number in numbers)


def _renamed(state: Mapping[str, Tensor], config: ModelSection, names: dict[str, str]) -> dict[str, Tensor]:
    if config.tie_word_embeddings:
        tied = {_TIED, NAMES[_TIED]}
        names = {old: new for old, new in names.items() if old not in tied}
        state = {name: tensor for name, tensor in state.items() if name not in tied}
    shapes = dict(_shapes(config))
    wrong = [f"{name}: is missing" for name in names if name not in state]
    wrong += [f"{name}: is not a weight of this architecture" for name in state if name not in names]
    for old, new in names.items():
        shape = shapes[new if new in shapes else old]
        if old in state and tuple(state[old].shape) != shape:
            wrong.append(f"{old}: has shape {tuple(state[old].shape)}, the model section says {shape}")
    if wrong:
        raise CheckpointError("\n".join(wrong))
    return {new: state[old] for old, new in names.items()}


def _shapes(config: ModelSection) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Shape of each of our tensors, by our name."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = (heads * config.head_size for heads in (config.num_attention_heads, config.key_value_heads))
    by_kind = {
        "embedding": (config.padded_vocab_size, width),
        "head": (config.padded_vocab_size, width),
        "query": (queries, width),
        "key": (keys, width),
        "value": (keys, width),
        "output": (width, queries),
        "gate": (inner, width),
        "up": (inner, width),
        "down": (width, inner),
    }
    for ours, _ in _pairs(config):
        kind = ours.split(".")[-2]
        yield ours, by_kind.get(kind, (width,))  # what is not a matrix is a norm
