"""Weights in and out, under the names that Hugging Face's LlamaForCausalLM gives them.

The two models are one architecture, and both turn channel pairs (i, i + K/2) in rotary embeddings, so that a tensor
only changes its name: none is transposed, split or permuted. No transformers here, only its names; and no torch, so
that the launcher can read what a folder holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from megatrain.config import ModelSection, RopeScaling
from megatrain.errors import CheckpointError, ConfigError

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

CONFIG = "config.json"
_SAME_NAME = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "rms_norm_eps",
)
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
_SCALED = "llama3"  # their name of RopeScaling
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


def is_pretrained(path: Path) -> bool:
    """Whether the folder is a model in Hugging Face's format."""
    return (path / CONFIG).is_file()


def read_pretrained(path: Path) -> tuple[ModelSection, int]:
    """The model of a folder in Hugging Face's format, and the longest sequence that it was made for, in tokens.

    Raises:
        ConfigError: its config.json is not a Llama's, or has what this architecture has not; says what.
    """
    file = path / CONFIG
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return _model_section(content), int(content["max_position_embeddings"])
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except KeyError as error:
        raise ConfigError(f"{file}: {error.args[0]}: is missing") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: {error}") from None


def weight_files(path: Path, config: ModelSection) -> dict[str, Path]:
    """The safetensors file of each tensor of the model, by their name. Reads headers only.

    Raises:
        CheckpointError: there are none, one is damaged or cut short, or a tensor is missing or has another shape.
    """
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= {name: (file, shape) for name, shape in _header(file).items()}
    if not found:
        raise CheckpointError(
            f"{path}: has no *.safetensors. Weights in pickles (*.bin) are not read: save them anew with transformers, "
            "`model.save_pretrained(folder)`."
        )
    wrong = []
    for ours, shape in shapes(config).items():
        name = their_name(ours)
        if name not in found:
            wrong.append(f"{path}: {name}: is missing")
        elif found[name][1] != shape:
            wrong.append(f"{path}: {name}: has shape {found[name][1]}, the model section says {shape}")
    if wrong:
        raise CheckpointError("\n".join(wrong))
    return {name: file for name, (file, _) in found.items()}


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a safetensors file's tensors. Its first 8 bytes are the length of the JSON that describes the rest."""
    try:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError("its header is too long")
            tensors = json.loads(opened.read(length))
        tensors.pop("__metadata__", None)
        size = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        if file.stat().st_size != size:
            raise ValueError(f"it has {file.stat().st_size:,} bytes, its header says {size:,}")
        return {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{file}: is damaged, or not a safetensors file: {error}") from None


def _model_section(content: dict[str, Any]) -> ModelSection:
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    expected = {
        "model_type": (content.get("model_type"), "llama"),
        "hidden_act": (content.get("hidden_act", "silu"), "silu"),
        "attention_bias": (content.get("attention_bias", False), False),
        "mlp_bias": (content.get("mlp_bias", False), False),
    }
    for field, (found, wanted) in expected.items():
        if found != wanted:
            raise ValueError(f"{field}: is {found!r}; megatrain has this architecture with {wanted!r} only")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", _SCALED):
        raise ValueError(f"rope_parameters.rope_type: is {kind!r}; megatrain has 'default' and {_SCALED!r}")
    scaling = {name: rope[name] for name in RopeScaling.model_fields} if kind == _SCALED else None
    return ModelSection.model_validate(
        {
            **{name: content[name] for name in _SAME_NAME},
            "num_key_value_heads": content.get("num_key_value_heads"),
            "head_dim": content.get("head_dim"),
            "rope_theta": float(content.get("rope_theta") or rope.get("rope_theta") or 10000.0),
            "rope_scaling": scaling,
            "tie_word_embeddings": content.get("tie_word_embeddings", False),
            "initializer_range": content.get("initializer_range", 0.02),
        }
    )


def llama_config(
    config: ModelSection,
    *,
    max_position_embeddings: int,
    dtype: str = "float32",
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """The content of config.json.

    Args:
        max_position_embeddings: the sequence length of training, in tokens.
        dtype: of the tensors beside it, such as "bfloat16".
    """
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {"rope_type": _SCALED, **config.rope_scaling.model_dump()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.padded_vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,  # this and the next line are for transformers 4; 5 reads the one after
        "rope_scaling": rope if config.rope_scaling is not None else None,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "max_position_embeddings": max_position_embeddings,
        "dtype": dtype,
        "torch_dtype": dtype,  # its name in transformers 4
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
    }


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
