"""Attention that families share. B batch, S sequence, D hidden size, H heads, K head size."""

from collections.abc import Callable

from torch import Tensor, nn

from megatrain.kernels.attention import attention
from megatrain.kernels.rotary import apply_rotary
from megatrain.model.architecture import ModelSection
from megatrain.model.window import CAUSAL, Window


class AttentionCore(nn.Module):
    """Attention between positions, once every position has its query, key and value; context parallelism attaches its
    all-to-all at this boundary."""

    def __init__(self, window: Window = CAUSAL, scale: float | None = None, softcap: float | None = None) -> None:
        super().__init__()
        self.window, self.scale, self.softcap = window, scale, softcap

    def forward(self, q_BSHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        return attention(q_BSHK, k_BSHK, v_BSHK, cu_seqlens, window=self.window, scale=self.scale, softcap=self.softcap)


class Attention(nn.Module):
    """Grouped-query attention. It infers its heads from the weights it finds, so that a tensor-parallel slice is an
    ordinary, smaller attention.

    Args:
        bias: on query, key and value.
        output_bias: on the output.
        head_norm: of a head's channels -> the norm of every query and key head before the rotation; None: there is
            none.
        window: which positions a position sees; see model/window.py.
        scale: of the scores; default: 1/√K.
        softcap: c of c·tanh(score / c); None: there is none.
    """

    def __init__(
        self,
        config: ModelSection,
        *,
        bias: bool = False,
        output_bias: bool = False,
        head_norm: Callable[[int], nn.Module] | None = None,
        window: Window = CAUSAL,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.head_size = config.head_size
        query_width = config.attention_heads * config.head_size
        key_value_width = config.key_value_heads * config.head_size
        self.query = nn.Linear(config.hidden_size, query_width, bias=bias)
        self.key = nn.Linear(config.hidden_size, key_value_width, bias=bias)
        self.value = nn.Linear(config.hidden_size, key_value_width, bias=bias)
        self.query_norm = head_norm(config.head_size) if head_norm else None
        self.key_norm = head_norm(config.head_size) if head_norm else None
        self.core = AttentionCore(window, scale, softcap)
        self.output = nn.Linear(query_width, config.hidden_size, bias=output_bias)

    def forward(
        self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor] | None = None, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            rotary: cosines and sines of the positions' angles (kernels/rotary.py); None: heads are not rotated.
        """
        q, k, v = (linear(x_BSD).unflatten(-1, (-1, self.head_size)) for linear in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if rotary is not None:
            q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        y_BSHK = self.core(q, k, v, cu_seqlens)
        out: Tensor = self.output(y_BSHK.flatten(-2))
        return out
