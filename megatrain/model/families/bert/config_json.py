"""config.json of BERT and RoBERTa in `transformers`: read, and written. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatrain.base.errors import ConfigError
from megatrain.base.files import parse_model, read_model
from megatrain.model.class_table import purpose
from megatrain.model.families.bert.section import BertSection
from megatrain.model.families.bert.table import their_model
from megatrain.model.huggingface_config import CONFIG_LIMIT, Layers, Part, Positions, Width, require

MODEL_TYPES = ("bert", "roberta")
_ROBERTA_PADDING = 1  # the id whose successor is the first position


class _ConfigJson(Part):
    """What config.json says of the weights, with the defaults of BertConfig and RobertaConfig."""

    num_hidden_layers: Layers = 12
    hidden_size: Width = 768
    num_attention_heads: Width = 12
    intermediate_size: Width = 3072
    vocab_size: Width | None = None
    max_position_embeddings: Positions = 512
    type_vocab_size: Width = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = _ROBERTA_PADDING


class _Function(Part):
    """What decides whether this is the function that megatrain has."""

    hidden_act: Any = "gelu"
    position_embedding_type: Any = "absolute"
    is_decoder: Any = False
    add_cross_attention: Any = False
    tie_word_embeddings: Any = True


_VOCABULARY = {"bert": 30522, "roberta": 50265}


def read_config(file: Path, model_type: str) -> tuple[BertSection, int]:
    """The model of a config.json, and the longest sequence it was made for, in tokens.

    Raises:
        ConfigError: it has what this architecture has not; says what.
    """
    wanted = {name: field.default for name, field in _Function.model_fields.items()}
    require(file, read_model(file, _Function, error=ConfigError, limit=CONFIG_LIMIT), wanted, model_type)
    content = read_model(file, _ConfigJson, error=ConfigError, limit=CONFIG_LIMIT)
    values = content.model_dump(exclude={"pad_token_id", "vocab_size"})
    values["vocab_size"] = content.vocab_size or _VOCABULARY[model_type]
    if model_type == "roberta":
        values["position_offset"] = offset = _position_offset(file, content, values["vocab_size"])
        if not offset:  # else it says enough, as in checkpoints from before model_type was a field
            values["model_type"] = model_type
    section = parse_model(BertSection, values, file, ConfigError)
    return section, section.longest_sequence


def _position_offset(file: Path, content: _ConfigJson, vocabulary: int) -> int:
    """
    Raises:
        ConfigError: transformers finds no positions with this id of padding.
    """
    padding, most = content.pad_token_id, min(vocabulary, content.max_position_embeddings - 1) - 1
    if padding is None or not -1 <= padding <= most:
        text = f"is {'null' if padding is None else padding}; positions of a 'roberta' begin behind it"
        fix = "Write the id of the tokenizer's padding; RoBERTa's is 1."
        raise ConfigError(f"{file}: pad_token_id: {text}, so that it must be from -1 to {most}. {fix}")
    return padding + 1


def huggingface_config(section: BertSection) -> dict[str, Any]:
    kind = their_model(section)
    name = {"bert": "Bert", "roberta": "Roberta"}[kind]
    found = {
        "architectures": [name + purpose(section, "ForMaskedLM")],
        "model_type": kind,
        "num_hidden_layers": section.num_hidden_layers,
        "hidden_size": section.hidden_size,
        "num_attention_heads": section.num_attention_heads,
        "intermediate_size": section.mlp_width,
        "max_position_embeddings": section.max_position_embeddings,
        "type_vocab_size": section.type_vocab_size,
        "layer_norm_eps": section.layer_norm_eps,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        **({} if section.num_labels is None else {"classifier_dropout": 0.0}),
    }
    return found | ({"pad_token_id": section.padding_id} if section.is_roberta else {})
