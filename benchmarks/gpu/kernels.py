"""Matrix products at model shapes, attention of each kind and length, and the vocabulary loss: ms, rate, peak bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measure import Recorder
from megatrain.kernels.attention import attention
from megatrain.kernels.cross_entropy import LossAndGrad, LossTerms, Projection, _chunk_loss, linear_loss

HEADS, KEY_VALUE_HEADS, HEAD_SIZE = 32, 8, 128  # of an 8B Llama
SHAPES = {"attention output": (8192, 4096, 4096), "mlp up": (8192, 4096, 14336), "mlp down": (8192, 14336, 4096)}


def main() -> None:
    record = Recorder("kernels")
    for name, (m, k, n) in ({"toy": (64, 64, 64)} if record.toy else SHAPES).items():
        record.attempt(f"matmul {name}", lambda m=m, k=k, n=n: matmul(record, m, k, n))  # type: ignore[misc]
    for length in (64,) if record.toy else (2048, 8192, 32768):
        for documents in (None, 1, 8):
            name = f"attention {length} {documents or 'plain'}"
            record.attempt(name, lambda s=length, d=documents: attend(record, s, d))  # type: ignore[misc]
    for kind in ("eager",) if record.toy else ("eager", "compiled", "triton"):
        for chunk in (16,) if record.toy else (1024, 4096, 8192):
            record.attempt(f"vocabulary loss {kind} {chunk}", lambda c=chunk, k=kind: vocabulary_loss(record, c, k))  # type: ignore[misc]
    if not record.toy:
        record.attempt("vocabulary loss liger", lambda: vocabulary_loss(record, 0, "liger"))


def matmul(record: Recorder, m: int, k: int, n: int) -> dict[str, Any]:
    a, b = (torch.randn(*s, device=record.device, dtype=torch.bfloat16) for s in ((m, k), (k, n)))
    milliseconds = record.milliseconds(lambda: a @ b)
    return {"ms": milliseconds, "tflops": 2 * m * k * n / milliseconds / 1e9}


def attend(record: Recorder, length: int, documents: int | None) -> dict[str, Any]:
    """Forward and backward; None: no boundaries at all."""
    shape = (4, 2, 16) if record.toy else (HEADS, KEY_VALUE_HEADS, HEAD_SIZE)
    q, k, v = (
        torch.randn(1, length, heads, shape[2], device=record.device, dtype=torch.bfloat16, requires_grad=True)
        for heads in (shape[0], shape[1], shape[1])
    )
    bounds = None
    if documents:
        bounds = torch.linspace(0, length, documents + 1).int().to(record.device)
    work = _with_backward(lambda: attention(q, k, v, bounds), (q, k, v))
    milliseconds = record.milliseconds(work, repeats=3)
    flops = 3.5 * 2 * length**2 / (documents or 1) * shape[0] * shape[2]  # causal; backward is 2.5 forwards
    return {"ms": milliseconds, "tflops": flops / milliseconds / 1e9, "peak_bytes": record.peak_bytes(work)}


def vocabulary_loss(record: Recorder, chunk: int, kind: str) -> dict[str, Any]:
    tokens, width, vocabulary = (32, 16, 64) if record.toy else (8192, 4096, 128_256)
    hidden, weight = (
        torch.randn(rows, width, device=record.device, dtype=torch.bfloat16, requires_grad=True)
        for rows in (tokens, vocabulary)
    )
    labels = torch.randint(0, vocabulary, (tokens,), device=record.device)
    work = _with_backward(_loss(kind, hidden, weight, labels, chunk), (hidden, weight))
    milliseconds = record.milliseconds(work, repeats=3)
    flops = 6 * tokens * width * vocabulary
    return {"ms": milliseconds, "tflops": flops / milliseconds / 1e9, "peak_bytes": record.peak_bytes(work)}


def _loss(kind: str, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Callable[[], Tensor]:
    if kind == "liger":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        theirs = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        return lambda: theirs(weight, hidden, labels)
    projection = Projection(weight)
    return lambda: linear_loss(hidden, projection, labels, _Of(kind=kind), chunk=chunk)[0]


@dataclass(frozen=True, slots=True)
class _Of(LossTerms):
    """Nothing but the cross-entropy, by a way of computing it that is named."""

    kind: str = "eager"

    @property
    def loss_and_grad(self) -> LossAndGrad:
        return _chunk_loss(self.kind == "triton", self.kind == "compiled")


def _with_backward(forward: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], None]:
    def work() -> None:
        out = forward()
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    return work


if __name__ == "__main__":
    main()
