"""A decoder-only Transformer of the Llama family, and nothing else.

Nothing here knows of ranks: what crosses them is attached to the boundaries of modules from outside, in
megatrain/parallel.

Shape suffixes: B batch, S sequence, D hidden size.
"""

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from megatrain.kernels.cross_entropy import LossTerms
from megatrain.kernels.rotary import rotary_table
from megatrain.model.attention import Attention
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.layers import RMSNorm, SwiGLU, scaled
from megatrain.model.lm_head import ClassHead, LMHead
from megatrain.model.mup import attention_scale, embedding_factor, output_factor
from megatrain.model.window import Window


class Block(nn.Module):
    def __init__(self, config: LlamaSection, window: Window) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(
            config,
            bias=config.attention_bias,
            head_norm=partial(RMSNorm, eps=config.rms_norm_eps) if config.qk_norm else None,
            window=window,
            scale=attention_scale(config),
            softcap=config.attn_logit_softcapping,
        )
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor], cu_seqlens: Tensor | None = None) -> Tensor:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rotary, cu_seqlens)
        return x_BSD + self.mlp(self.mlp_norm(x_BSD))


class Llama(nn.Module):
    block_classes = (Block,)

    def __init__(self, config: LlamaSection) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, window) for window in config.windows)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = (
            LMHead(config, softcap=config.final_logit_softcapping)
            if config.num_labels is None
            else ClassHead(config, bias=config.classifies != "sequence")
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
        """The summed loss over all labels (fp32 scalar), or without labels the logits [B, S, V].

        Args:
            input_ids_BS: int64.
            labels_BS: int64, the token to predict at each position; IGNORE_INDEX where there is none.
            position_ids_BS: int64; default 0, 1, 2, …
            cu_seqlens: int32 [documents + 1]; attention stays within documents, see kernels/attention.py. Default: a
                sequence is one document. Of whole sequences, also where the other inputs are a part of them
                (megatrain/parallel/context_parallel.py).
            terms: of the loss besides the cross-entropy; given them, the result is (loss, cross-entropy alone).
        """
        if position_ids_BS is None:
            position_ids_BS = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device)[None]
        config = self.config
        rotary = rotary_table(position_ids_BS, config.head_size, config.rope_theta, config.rope_scaling)
        x_BSD = scaled(self.embedding(input_ids_BS), embedding_factor(config))
        for block in self.blocks:
            x_BSD = block(x_BSD, rotary, cu_seqlens)
        out: Tensor | tuple[Tensor, Tensor] = self.head(
            scaled(self.norm(x_BSD), output_factor(config)), labels_BS, terms
        )
        return out
