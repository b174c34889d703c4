"""Tiny models of `transformers` that megatrain has no family for, and their sections, described in this process."""

import json
from typing import Any

import pytest

from megatrain.model.families.transformers import resolve
from megatrain.model.families.transformers.section import TransformersSection

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 256}
SIZES |= {"max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
MODELS: dict[str, dict[str, Any]] = {
    # tied, learned positions behind an offset, a row of padding, dropout
    "opt": {"ffn_dim": 88, "word_embed_proj_dim": 64, "pad_token_id": 1},
    # fused queries, keys and values; a parallel MLP; rotates a quarter of each head
    "gpt_neox": {"intermediate_size": 88},
    # norms behind, grouped queries, norms of queries and keys
    "olmo2": {"intermediate_size": 88, "num_key_value_heads": 2},
    # a bias in the head
    "phi": {"intermediate_size": 88},
    # sliding windows
    "starcoder2": {"intermediate_size": 88, "num_key_value_heads": 2, "sliding_window": 5},
    # logits that are scaled
    "cohere": {"intermediate_size": 88, "num_key_value_heads": 2},
    # attention of its own
    "bloom": {},
    "falcon": {},
    # none at all, and weights that begin in ways of their own
    "mamba": {},
}
ISOLATED = ("opt", "gpt_neox", "olmo2", "phi", "starcoder2", "cohere")


def said(name: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": name, **SIZES, **MODELS[name], **changes}


def answer(configuration: str, where: str) -> str:
    """What the process of `describe.py` prints."""
    from megatrain.base.errors import ConfigError
    from megatrain.model.families.transformers.describe import describe

    try:
        return json.dumps(describe(json.loads(configuration)))
    except ConfigError as error:
        return json.dumps({"error": str(error)})


def section_of(name: str, **changes: Any) -> TransformersSection:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(resolve, "_answer", answer)
        return resolve.described(said(name, **changes), name)
