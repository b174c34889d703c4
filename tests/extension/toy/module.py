"""The module of the toy family: plain layers, and no word of ranks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megatrain.kernels.cross_entropy import LossTerms
from megatrain.kernels.rotary import apply_rotary, rotary_table
from megatrain.model.attention import AttentionCore
from megatrain.model.layers import RMSNorm
from megatrain.model.lm_head import LMHead
from toy.family import ToySection


class ToyAttention(nn.Module):
    def __init__(self, config: ToySection) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.query, self.key, self.value, self.output = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in "qkvo"
        )
        self.core = AttentionCore()

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cu_seqlens: Tensor | None) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (-1, self.head_size)) for linear in (self.query, self.key, self.value))
        return self.output(self.core(apply_rotary(q, *rotary), apply_rotary(k, *rotary), v, cu_seqlens).flatten(-2))


class ToyMLP(nn.Module):
    def __init__(self, config: ToySection) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(config.hidden_size, config.mlp_width) for _ in range(2))
        self.down = nn.Linear(config.mlp_width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class ToyBlock(nn.Module):
    def __init__(self, config: ToySection) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = (RMSNorm(config.hidden_size, 1e-5) for _ in range(2))
        self.attention, self.mlp = ToyAttention(config), ToyMLP(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cu_seqlens: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, cu_seqlens)
        return x + self.mlp(self.mlp_norm(x))


class Toy(nn.Module):
    block_classes = (ToyBlock,)

    def __init__(self, config: ToySection) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(ToyBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, 1e-5)
        self.head = LMHead(config)

    def forward(
        self,
        input_ids_BS: Tensor,
        labels_BS: Tensor | None = None,
        *,
        position_ids_BS: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        terms: LossTerms | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if position_ids_BS is None:
            position_ids_BS = torch.arange(input_ids_BS.shape[1])[None]
        rotary = rotary_table(position_ids_BS, self.head_size, 10000.0, None)
        x = self.embedding(input_ids_BS)
        for block in self.blocks:
            x = block(x, rotary, cu_seqlens)
        return self.head(self.norm(x), labels_BS, terms)
