"""A run that no machine here could hold."""

from megatrain.config import PretrainConfig

RANKS = 1024


def llama_70b(*, tensor_parallel: int, zero_stage: int, layers: int = 80) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "run": {"name": "70b"},
            "model": {
                "num_hidden_layers": layers,
                "hidden_size": 8192,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "intermediate_size": 28672,
                "vocab_size": 128256,
            },
            "data": {"sequence_length": 8192, "train": [{"path": "none"}]},
            "training": {"steps": 1, "global_batch_size": RANKS, "micro_batch_size": 1, "precision": "bf16"},
            "parallel": {
                "tensor_parallel": tensor_parallel,
                "context_parallel": 1,
                "zero_stage": zero_stage,
                "sequence_parallel": tensor_parallel > 1,
                "activation_checkpointing": "full",
                "compile": False,
            },
        }
    )
