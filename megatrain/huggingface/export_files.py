"""What an exported folder says beside its weights: config.json, generation_config.json and the tokenizer's files.

A model that was fine-tuned from somebody's keeps all that they said of it, but what its weights are is written anew. Of
a model that was pretrained here, what its tokenizer and its sequences tell.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatrain.base.errors import ConfigError
from megatrain.config import ModelSection
from megatrain.data.folder.manifest import TOKENIZER
from megatrain.data.text.tokenizer_files import TOKENIZER_CONFIG, Files, token_text
from megatrain.data.text.vocabulary import parse_vocabulary
from megatrain.huggingface.config_json import CONFIG, GENERATION_CONFIG, config_json

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ENCODER_IDS = ("cls_token_id", "sep_token_id")
_USUAL = {"cls_token": "[CLS]", "sep_token": "[SEP]"}  # where the tokenizer's files do not name them
# Of a base's config.json, what is true of its weights and code only.
_LEFT_OUT = ("quantization_config", "compression_config", "auto_map", "_name_or_path")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is known of a model that is exported."""

    model: ModelSection  # as exported
    dtype: str
    positions: int  # the longest sequence, in tokens, that it or its base was trained on
    tokenizer: Files  # nothing where the run has none
    base: Files  # what a pretrained base said of itself; nothing for a model that was pretrained here
    end_id: int | None  # the token that its texts or responses ended with in training
    end_token: str | None
    pad_token: str | None
    pad_id: int | None = None
    labels: tuple[str, ...] = ()  # of a classifier
    problem_type: str | None = "single_label_classification"  # of a classifier of sequences
    quantization: Mapping[str, Any] | None = None  # `quantization_config` of what is exported
    ends_labelled: bool = False  # a causal classifier's label was learnt at an end of text behind each example


def described(source: Source) -> dict[str, bytes]:
    """Every file but the weights, by name."""
    config = _config(source)
    if source.quantization is not None:
        config["quantization_config"] = dict(source.quantization)
    files = {CONFIG: _json(config), **_generation(source, config), **source.tokenizer}
    if source.tokenizer:
        longest = source.model.longest_sequence or config["max_position_embeddings"]
        files[TOKENIZER_CONFIG] = _json(_tokenizer_config(source, longest))
    return files


def _config(source: Source) -> dict[str, Any]:
    said = _parsed(source.base, CONFIG)
    longest = said.get("max_position_embeddings")
    positions = max(source.positions, longest) if isinstance(longest, int) else source.positions
    ours = config_json(
        source.model,
        max_position_embeddings=positions,
        dtype=source.dtype,
        labels=source.labels,
        problem_type=source.problem_type,
    )
    if not source.base:
        return ours | _ids_of(source) | _padding(source)
    kept = {name: value for name, value in said.items() if name not in _LEFT_OUT}
    names = _id_names(source.model)
    ids = {name: said[name] for name in names if name in said}
    # dropout is no fact of the weights: what they said of it, or transformers says for them, stays
    facts = {name: value for name, value in ours.items() if name not in names and "drop" not in name}
    ends = {} if source.labels else {"eos_token_id": _with_end(said.get("eos_token_id"), source.end_id)}
    return kept | facts | ids | ends | _padding(source)


def _padding(source: Source) -> dict[str, int | None]:
    """Of a causal classifier: `transformers` looks for the label at the last token that is no padding.

    Where it was learnt at an end of text, and padding is done with the same token, nothing finds it: without an id of
    padding, `transformers` takes the last token of a text at a time, and refuses several.
    """
    if not source.labels or not source.model.is_causal:
        return {}
    is_hidden = source.ends_labelled and source.pad_id == source.end_id
    is_known = source.pad_id is not None and source.pad_id < source.model.padded_vocab_size
    return {"pad_token_id": source.pad_id if is_known and not is_hidden else None}


def _ids_of(source: Source) -> dict[str, int | None]:
    """
    Raises:
        ConfigError: the tokenizer pads with another id than the model needs.
    """
    ids, padding = _ids(source), source.model.padding_id
    if padding is None:
        return ids
    if ids["pad_token_id"] not in (None, padding):
        raise ConfigError(
            f"model.position_offset: {padding + 1}: transformers begins to count positions behind the id of padding, "
            f"which is {ids['pad_token_id']} in the run's tokenizer: it has no such model, and this is not exported."
        )
    return ids | {"pad_token_id": padding}


def _generation(source: Source, config: Mapping[str, Any]) -> dict[str, bytes]:
    if source.labels:
        return {}  # it continues no text
    if not source.base:
        ids = {name: config[name] for name in _IDS if config[name] is not None}
        return {GENERATION_CONFIG: _json(ids)} if ids else {}
    if GENERATION_CONFIG not in source.base:
        return {}
    said = _parsed(source.base, GENERATION_CONFIG)
    ends = _with_end(said.get("eos_token_id", config["eos_token_id"]), source.end_id)
    if ends == said.get("eos_token_id"):
        return {GENERATION_CONFIG: source.base[GENERATION_CONFIG]}
    return {GENERATION_CONFIG: _json(said | {"eos_token_id": ends})}


def _with_end(said: Any, end_id: int | None) -> Any:
    """The ids that end a text, and the one that responses ended with in fine-tuning."""
    if end_id is None or said == end_id or (isinstance(said, list) and end_id in said):
        return said
    return end_id if said is None else [*(said if isinstance(said, list) else [said]), end_id]


def _tokenizer_config(source: Source, positions: int) -> dict[str, Any]:
    said = _parsed(source.tokenizer, TOKENIZER_CONFIG)
    defaults = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config = dict(said) if source.base and said else defaults | said
    config["eos_token"] = said.get("eos_token") or source.end_token
    longest = said.get("model_max_length")
    if not source.base:
        config |= {"pad_token": said.get("pad_token") or source.pad_token, "model_max_length": positions}
    elif source.labels and source.model.is_causal:
        config["pad_token"] = said.get("pad_token") or source.pad_token
    if source.base and (not isinstance(longest, int | float) or longest < positions):
        config["model_max_length"] = positions
    return config


def _ids(source: Source) -> dict[str, int | None]:
    """Of the tokens that the tokenizer of a model pretrained here names."""
    names = _id_names(source.model)
    if not source.tokenizer:
        return dict.fromkeys(names)
    said = _USUAL | _parsed(source.tokenizer, TOKENIZER_CONFIG)
    ids = parse_vocabulary(source.tokenizer[TOKENIZER], TOKENIZER).ids
    found = {name: ids.get(token_text(said.get(name.removesuffix("_id"))) or "") for name in names}
    if found["pad_token_id"] is None:
        found["pad_token_id"] = ids.get(source.pad_token or "")
    rows = source.model.padded_vocab_size
    named = found | {"eos_token_id": source.end_id}
    return {name: number if number is not None and number < rows else None for name, number in named.items()}


def _id_names(model: ModelSection) -> tuple[str, ...]:
    return _IDS if model.is_causal else (*_IDS, *_ENCODER_IDS)


def _parsed(files: Files, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(files[name]) if name in files else {}
    return value


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def not_exported(model: ModelSection) -> str:
    """Why a model with an adapter that cannot be merged has no form in Hugging Face's libraries, and what to do."""
    assert model.adapter is not None
    return (
        f"has {model.adapter.name} adapters, which cannot be merged, and for which neither transformers nor PEFT has a "
        "form. Use it with megatrain generate, evaluate and predict; or train a LoRA (finetune.adapter.name: lora)"
    )
