"""A decoder-only Transformer as GPT-2, and nothing else. Nothing here knows of ranks: see megatrain/parallel.

Shape suffixes: B batch, S sequence, D hidden size.
"""

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatrain.kernels.cross_entropy import LossTerms
from megatrain.model.attention import Attention
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.layers import MLP, scaled
from megatrain.model.lm_head import ClassHead, LMHead
from megatrain.model.mup import attention_scale, embedding_factor, output_factor


class Block(nn.Module):
    def __init__(self, config: GPTSection) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = Attention(config, bias=True, output_bias=True, scale=attention_scale(config))
        self.mlp_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.mlp_width, partial(F.gelu, approximate="tanh"))

    def forward(self, x_BSD: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), None, cu_seqlens)
        out: Tensor = x_BSD + self.mlp(self.mlp_norm(x_BSD))
        return out


class GPT(nn.Module):
    block_classes = (Block,)

    def __init__(self, config: GPTSection) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.head = (
            LMHead(config) if config.num_labels is None else ClassHead(config, bias=config.classifies != "sequence")
        )
        if config.ties_head:
            self.head.weight = cast(nn.Parameter, self.embedding.weight)

    def forward(
        self,
        input_ids_BS: Tensor,
        labels_BS: Tensor | None = None,
        *,
        position_ids_BS: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        terms: LossTerms | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The summed loss over all labels (fp32 scalar), or without labels the logits [B, S, V]; as
        `families.llama.module.Llama.forward`. Positions are below max_position_embeddings."""
        if position_ids_BS is None:
            position_ids_BS = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device)[None]
        x_BSD = self.embedding(input_ids_BS) + self.position_embedding(position_ids_BS)
        x_BSD = scaled(x_BSD, embedding_factor(self.config))
        for block in self.blocks:
            x_BSD = block(x_BSD, cu_seqlens)
        x_BSD = scaled(self.norm(x_BSD), output_factor(self.config))
        out: Tensor | tuple[Tensor, Tensor] = self.head(x_BSD, labels_BS, terms)
        return out
