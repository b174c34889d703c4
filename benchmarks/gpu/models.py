"""The models that are timed: of the Llama family, at sizes of GPT-3's (arXiv 2005.14165, table 2.1)."""

from dataclasses import dataclass
from typing import Any

from megatrain.config import PretrainConfig

VOCABULARY = 50_304


@dataclass(frozen=True)
class Shape:
    """A model and how many tokens of it one forward and backward pass takes."""

    section: dict[str, Any]
    micro_batch_tokens: int


def _decoder(layers: int, width: int, heads: int, mlp: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": mlp,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
    }


MODELS = {
    "125M": Shape(_decoder(12, 768, 12, 2048), 65_536),
    "350M": Shape(_decoder(24, 1024, 16, 2816), 32_768),
    "1.3B": Shape(_decoder(24, 2048, 16, 5632), 16_384),
    "toy": Shape(_decoder(2, 64, 4, 96) | {"vocab_size": 256}, 64),
}


def config_of(
    model: str,
    *,
    length: int,
    accumulation: int,
    zero_stage: int = 1,
    checkpointing: str = "none",
    compiled: bool = True,
    precision: str = "bf16",
) -> PretrainConfig:
    """A run of one rank whose data is made by the caller."""
    shape = MODELS[model]
    micro = max(1, shape.micro_batch_tokens // length)
    return PretrainConfig.model_validate(
        {
            "run": {"name": "steps"},
            "model": shape.section,
            "data": {"sequence_length": length, "train": [{"path": "none"}]},
            "training": {
                "steps": 1,
                "global_batch_size": micro * accumulation,
                "micro_batch_size": micro,
                "precision": precision,
            },
            "parallel": {
                "tensor_parallel": 1,
                "context_parallel": 1,
                "zero_stage": zero_stage,
                "sequence_parallel": False,
                "activation_checkpointing": checkpointing,
                "compile": compiled,
            },
        }
    )
