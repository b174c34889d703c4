"""What every contestant trains: a Llama, its batch, and the optimizer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatrain.config import PretrainConfig
from megatrain.model.architecture import ModelSection

RATE, BETAS, EPS, DECAY, CLIPPING = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0


@dataclass(frozen=True)
class Shape:
    layers: int = 6
    width: int = 384
    heads: int = 6
    mlp: int = 1024
    vocabulary: int = 8192
    length: int = 512
    micro_batch: int = 4
    accumulation: int = 2

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.accumulation * self.length

    @property
    def model(self) -> dict[str, Any]:
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "intermediate_size": self.mlp,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
        }

    def config(self, precision: str) -> PretrainConfig:
        """As megatrain runs it on one rank."""
        return PretrainConfig.model_validate(
            {
                "run": {"name": "benchmark"},
                "model": self.model,
                "data": {"sequence_length": self.length, "train": [{"path": "none"}]},
                "optimizer": {"learning_rate": RATE, "betas": BETAS, "eps": EPS, "weight_decay": DECAY},
                "training": {
                    "steps": 1,
                    "global_batch_size": self.micro_batch * self.accumulation,
                    "micro_batch_size": self.micro_batch,
                    "precision": precision,
                },
                "parallel": {
                    "tensor_parallel": 1, "context_parallel": 1, "zero_stage": 1, "sequence_parallel": False,
                    "activation_checkpointing": "none", "compile": True,
                },
            }
        )  # fmt: skip

    @property
    def section(self) -> ModelSection:
        return self.config("fp32").model

    def ids(self) -> Tensor:
        """Of one micro-batch, int64 [micro_batch, length]."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, self.vocabulary, (self.micro_batch, self.length), generator=generator)

    def transformers_model(self) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        return LlamaForCausalLM(
            LlamaConfig(**self.model, max_position_embeddings=self.length, use_cache=False, attn_implementation="sdpa")
        )
