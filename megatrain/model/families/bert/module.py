"""An encoder as BERT, and nothing else. Nothing here knows of ranks: see megatrain/parallel.

Shape suffixes: B batch, S sequence, D hidden size.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatrain.kernels.cross_entropy import LossTerms
from megatrain.model.attention import Attention
from megatrain.model.families.bert.section import BertSection
from megatrain.model.layers import MLP
from megatrain.model.lm_head import ClassHead, LMHead
from megatrain.model.window import BIDIRECTIONAL


class Block(nn.Module):
    """Norms stand behind what they follow: on the residual stream."""

    def __init__(self, config: BertSection) -> None:
        super().__init__()
        self.attention = Attention(config, bias=True, output_bias=True, window=BIDIRECTIONAL)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.mlp_width, F.gelu)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x_BSD: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        x_BSD = self.attention_norm(x_BSD + self.attention(x_BSD, None, cu_seqlens))
        out: Tensor = self.mlp_norm(x_BSD + self.mlp(x_BSD))
        return out


class Transform(nn.Module):
    """What stands between the last block and the vocabulary."""

    def __init__(self, config: BertSection) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x_BSD: Tensor) -> Tensor:
        out: Tensor = self.norm(F.gelu(self.dense(x_BSD)))
        return out


class Pooler(nn.Module):
    """What stands between the last block and the classes; of positions that are not labelled, it is not used."""

    def __init__(self, config: BertSection) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return torch.tanh(self.dense(x_BSD))


class Bert(nn.Module):
    block_classes = (Block,)

    def __init__(self, config: BertSection) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embedding = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        if config.num_labels is None:
            self.transform = Transform(config)
            self.head: LMHead | ClassHead = LMHead(config, bias=True)
            self.head.weight = cast(nn.Parameter, self.embedding.weight)
        else:
            self.pooler = Pooler(config) if config.classifies == "sequence" else nn.Identity()
            self.head = ClassHead(config, bias=True)

    def forward(
        self,
        input_ids_BS: Tensor,
        labels_BS: Tensor | None = None,
        *,
        position_ids_BS: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        terms: LossTerms | None = None,
        token_types_BS: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The summed loss over all labels (fp32 scalar), or without labels the logits [B, S, V]; as
        `families.llama.module.Llama.forward`. A label is of its own position. Positions count from 0; those of a
        sequence are below `longest_sequence`. Token types are int64, all of the first by default."""
        if position_ids_BS is None:
            position_ids_BS = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device)[None]
        positions_BSD = self.position_embedding(position_ids_BS + self.config.position_offset)
        types_BSD = self.token_type_embedding(
            torch.zeros_like(position_ids_BS) if token_types_BS is None else token_types_BS
        )
        x_BSD = self.embedding_norm(self.embedding(input_ids_BS) + types_BSD + positions_BSD)
        for block in self.blocks:
            x_BSD = block(x_BSD, cu_seqlens)
        x_BSD = self.transform(x_BSD) if self.config.num_labels is None else self.pooler(x_BSD)
        out: Tensor | tuple[Tensor, Tensor] = self.head(x_BSD, labels_BS, terms)
        return out
