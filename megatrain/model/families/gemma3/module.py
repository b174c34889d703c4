"""A decoder as Gemma 3, and nothing else. Nothing here knows of ranks: see megatrain/parallel.

Shape suffixes: B batch, S sequence, D hidden size.
"""

import math
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatrain.kernels.cross_entropy import LossTerms
from megatrain.kernels.rms_norm import rms_norm
from megatrain.kernels.rotary import rotary_table
from megatrain.model.attention import Attention
from megatrain.model.families.gemma3.section import Gemma3Section
from megatrain.model.layers import GeGLU
from megatrain.model.lm_head import ClassHead, LMHead
from megatrain.model.rope import LinearScaling
from megatrain.model.window import CAUSAL, Window


class ZeroCenteredRMSNorm(nn.Module):
    """RMSNorm whose weight is kept less one, so that weight decay, where it applies, draws it to one."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """In fp32, the sum with one included; dtype of x."""
        return rms_norm(x.float(), 1.0 + self.weight.float(), self.eps).to(x.dtype)


class Block(nn.Module):
    def __init__(self, config: Gemma3Section, window: Window) -> None:
        super().__init__()
        norm = partial(ZeroCenteredRMSNorm, eps=config.rms_norm_eps)
        self.attention_norm = norm(config.hidden_size)
        self.attention = Attention(
            config,
            head_norm=norm if config.qk_norm else None,
            window=window,
            scale=config.query_pre_attn_scalar**-0.5,
            softcap=config.attn_logit_softcapping,
        )
        self.attention_output_norm = norm(config.hidden_size)
        self.mlp_norm = norm(config.hidden_size)
        self.mlp = GeGLU(config.hidden_size, config.intermediate_size, partial(F.gelu, approximate="tanh"))
        self.mlp_output_norm = norm(config.hidden_size)

    def forward(self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor], cu_seqlens: Tensor | None = None) -> Tensor:
        x_BSD = x_BSD + self.attention_output_norm(self.attention(self.attention_norm(x_BSD), rotary, cu_seqlens))
        out: Tensor = x_BSD + self.mlp_output_norm(self.mlp(self.mlp_norm(x_BSD)))
        return out


class Gemma3(nn.Module):
    block_classes = (Block,)

    def __init__(self, config: Gemma3Section) -> None:
        super().__init__()
        self.config = config
        self.windows = config.windows
        self.embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, window) for window in self.windows)
        self.norm = ZeroCenteredRMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.num_labels is None:
            self.head: LMHead | ClassHead = LMHead(config, softcap=config.final_logit_softcapping)
            self.head.weight = cast(nn.Parameter, self.embedding.weight)
        else:
            self.head = ClassHead(config, bias=config.classifies != "sequence")

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
        `families.llama.module.Llama.forward`."""
        if position_ids_BS is None:
            position_ids_BS = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device)[None]
        config = self.config
        scaling = LinearScaling(rope_type="linear", factor=config.rope_factor) if config.rope_factor > 1 else None
        everywhere = rotary_table(position_ids_BS, config.head_dim, config.rope_theta, scaling)
        local = rotary_table(position_ids_BS, config.head_dim, config.local_rope_theta)
        embedded_BSD = self.embedding(input_ids_BS)
        # the factor is rounded to the dtype, as in the published models
        x_BSD = embedded_BSD * torch.tensor(math.sqrt(config.hidden_size)).to(embedded_BSD.dtype).item()
        for block, window in zip(self.blocks, self.windows, strict=True):
            x_BSD = block(x_BSD, everywhere if window == CAUSAL else local, cu_seqlens)
        out: Tensor | tuple[Tensor, Tensor] = self.head(self.norm(x_BSD), labels_BS, terms)
        return out
