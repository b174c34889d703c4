"""An encoder as ModernBERT, and nothing else. Nothing here knows of ranks: see megatrain/parallel.

Shape suffixes: B batch, S sequence, D hidden size.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatrain.kernels.cross_entropy import LossTerms
from megatrain.kernels.rotary import rotary_table
from megatrain.model.attention import Attention
from megatrain.model.families.modernbert.section import ModernBertSection
from megatrain.model.layers import GeGLU
from megatrain.model.lm_head import ClassHead, LMHead
from megatrain.model.window import BIDIRECTIONAL, Window


def _norm(config: ModernBertSection) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, config.layer_norm_eps, bias=False)


class Block(nn.Module):
    def __init__(self, config: ModernBertSection, window: Window, *, is_first: bool) -> None:
        super().__init__()
        self.attention_norm = nn.Identity() if is_first else _norm(config)  # the first stands behind a norm
        self.attention = Attention(config, window=window)
        self.mlp_norm = _norm(config)
        self.mlp = GeGLU(config.hidden_size, config.intermediate_size)

    def forward(self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor], cu_seqlens: Tensor | None = None) -> Tensor:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rotary, cu_seqlens)
        out: Tensor = x_BSD + self.mlp(self.mlp_norm(x_BSD))
        return out


class Transform(nn.Module):
    """What stands between the last norm and the vocabulary."""

    def __init__(self, config: ModernBertSection) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = _norm(config)

    def forward(self, x_BSD: Tensor) -> Tensor:
        out: Tensor = self.norm(F.gelu(self.dense(x_BSD)))
        return out


class ModernBert(nn.Module):
    block_classes = (Block,)

    def __init__(self, config: ModernBertSection) -> None:
        super().__init__()
        self.config = config
        self.windows = config.windows
        self.embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.embedding_norm = _norm(config)
        self.blocks = nn.ModuleList(
            Block(config, window, is_first=number == 0) for number, window in enumerate(self.windows)
        )
        self.norm = _norm(config)
        self.transform = Transform(config)
        if config.num_labels is None:
            self.head: LMHead | ClassHead = LMHead(config, bias=True)
            self.head.weight = cast(nn.Parameter, self.embedding.weight)
        else:
            self.head = ClassHead(config, bias=True)

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
        `families.llama.module.Llama.forward`. A label is of its own position."""
        if position_ids_BS is None:
            position_ids_BS = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device)[None]
        size = self.config.head_size
        everywhere = rotary_table(position_ids_BS, size, self.config.rope_theta)
        local = rotary_table(position_ids_BS, size, self.config.local_rope_theta)
        x_BSD = self.embedding_norm(self.embedding(input_ids_BS))
        for block, window in zip(self.blocks, self.windows, strict=True):
            x_BSD = block(x_BSD, everywhere if window == BIDIRECTIONAL else local, cu_seqlens)
        out: Tensor | tuple[Tensor, Tensor] = self.head(self.transform(self.norm(x_BSD)), labels_BS, terms)
        return out
