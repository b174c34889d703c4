"""Attention that families share. B batch, S sequence, D hidden size, H heads, K head size."""

from torch import Tensor, nn

from megatrain.kernels.attention import attention
from megatrain.kernels.rotary import apply_rotary
from megatrain.model.architecture import ModelSection
from megatrain.model.layers import RMSNorm


class AttentionCore(nn.Module):
    """Attention between positions, once every position has its query, key and value; context parallelism attaches its
    all-to-all at this boundary."""

    def forward(self, q_BSHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        return attention(q_BSHK, k_BSHK, v_BSHK, cu_seqlens)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions. It infers its heads from the weights it finds, so that a
    tensor-parallel slice is an ordinary, smaller attention.

    Args:
        bias: on query, key and value; the output has none.
        qk_norm_eps: of an RMSNorm of every query and key head before the rotation; None: there is none.
    """

    def __init__(self, config: ModelSection, *, bias: bool = False, qk_norm_eps: float | None = None) -> None:
        super().__init__()
        self.head_size = config.head_size
        query_width = config.attention_heads * config.head_size
        key_value_width = config.key_value_heads * config.head_size
        self.query = nn.Linear(config.hidden_size, query_width, bias=bias)
        self.key = nn.Linear(config.hidden_size, key_value_width, bias=bias)
        self.value = nn.Linear(config.hidden_size, key_value_width, bias=bias)
        self.query_norm = RMSNorm(config.head_size, qk_norm_eps) if qk_norm_eps is not None else None
        self.key_norm = RMSNorm(config.head_size, qk_norm_eps) if qk_norm_eps is not None else None
        self.core = AttentionCore()
        self.output = nn.Linear(query_width, config.hidden_size, bias=False)

    def forward(self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor], cu_seqlens: Tensor | None = None) -> Tensor:
        q, k, v = (linear(x_BSD).unflatten(-1, (-1, self.head_size)) for linear in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        y_BSHK = self.core(apply_rotary(q, *rotary), apply_rotary(k, *rotary), v, cu_seqlens)
        out: Tensor = self.output(y_BSHK.flatten(-2))
        return out
