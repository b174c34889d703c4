"""The architecture: a decoder-only Transformer of the Llama family, and nothing else.

Nothing here knows of ranks. Attention infers its heads from the weights it finds, so that a tensor-parallel slice is an
ordinary, smaller attention; what crosses ranks is hung on the boundaries of modules from outside (megatrain/parallel).

Shape suffixes: B batch, S sequence, D hidden size, H heads, K head size.
"""

from typing import cast

import torch
from torch import Tensor, nn

from megatrain.config import ModelSection
from megatrain.kernels.attention import attention
from megatrain.kernels.rms_norm import rms_norm
from megatrain.kernels.rotary import apply_rotary, rotary_table
from megatrain.kernels.swiglu import swiglu
from megatrain.model.lm_head import LMHead


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class AttentionCore(nn.Module):
    """Attention between positions, once every position has its query, key and value; a boundary to hang things on."""

    def forward(self, q_BSHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        return attention(q_BSHK, k_BSHK, v_BSHK, cu_seqlens)


class Attention(nn.Module):
    def __init__(self, config: ModelSection) -> None:
        super().__init__()
        self.head_size = config.head_size
        query_width = config.num_attention_heads * config.head_size
        key_value_width = config.key_value_heads * config.head_size
        self.query = nn.Linear(config.hidden_size, query_width, bias=False)
        self.key = nn.Linear(config.hidden_size, key_value_width, bias=False)
        self.value = nn.Linear(config.hidden_size, key_value_width, bias=False)
        self.core = AttentionCore()
        self.output = nn.Linear(query_width, config.hidden_size, bias=False)

    def forward(self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor], cu_seqlens: Tensor | None = None) -> Tensor:
        q, k, v = (linear(x_BSD).unflatten(-1, (-1, self.head_size)) for linear in (self.query, self.key, self.value))
        y_BSHK = self.core(apply_rotary(q, *rotary), apply_rotary(k, *rotary), v, cu_seqlens)
        out: Tensor = self.output(y_BSHK.flatten(-2))
        return out


class MLP(nn.Module):
    def __init__(self, config: ModelSection) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        out: Tensor = self.down(swiglu(self.gate(x_BSD), self.up(x_BSD)))
        return out


class Block(nn.Module):
    def __init__(self, config: ModelSection) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor], cu_seqlens: Tensor | None = None) -> Tensor:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rotary, cu_seqlens)
        return x_BSD + self.mlp(self.mlp_norm(x_BSD))


class Transformer(nn.Module):
    def __init__(self, config: ModelSection) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = LMHead(config)
        if config.tie_word_embeddings:
            self.head.weight = cast(nn.Parameter, self.embedding.weight)

    def forward(
        self,
        input_ids_BS: Tensor,
        labels_BS: Tensor | None = None,
        *,
        position_ids_BS: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """The summed loss over all labels (fp32 scalar), or without labels the logits [B, S, V].

        Args:
            input_ids_BS: int64.
            labels_BS: int64, the token to predict at each position; IGNORE_INDEX where there is none.
            position_ids_BS: int64; default 0, 1, 2, …
            cu_seqlens: int32 [documents + 1]; attention stays within documents, see kernels/attention.py. Default: a
                sequence is one document. Of whole sequences, also where the other inputs are a part of them
                (megatrain/parallel/context_parallel.py).
        """
        if position_ids_BS is None:
            position_ids_BS = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device)[None]
        config = self.config
        rotary = rotary_table(position_ids_BS, config.head_size, config.rope_theta, config.rope_scaling)
        x_BSD = self.embedding(input_ids_BS)
        for block in self.blocks:
            x_BSD = block(x_BSD, rotary, cu_seqlens)
        out: Tensor = self.head(self.norm(x_BSD), labels_BS)
        return out
