"""python -m tests.gpu.dry.interpreted: Triton's kernels run by its interpreter on a CPU, beside torch's operators.

In a process of its own, for Triton looks once whether it interprets.
"""

import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatrain.kernels.cross_entropy import IGNORE_INDEX, LossTerms, Projection, VocabSlice, _loss_and_grad

ROWS, WIDTH, VOCABULARY = 3, 12, 40
TERMS = (LossTerms(), LossTerms(z_loss=1e-2), LossTerms(label_smoothing=0.1), LossTerms(0.3, 0.4))


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    softcap: float | None
    terms: LossTerms
    slices: int
    classes: int | None
    biased: bool


def cases() -> list[Case]:
    """Classes end in front of the last slice, or within it."""
    softcaps, slices = (None, 2.5), (1, 2)
    found = [Case(torch.float32, *rest, None, False) for rest in itertools.product(softcaps, TERMS, slices)]
    found += [Case(torch.bfloat16, softcap, TERMS[-1], 1, None, False) for softcap in softcaps]
    found += [Case(torch.float32, 2.5, TERMS[-1], *rest, True) for rest in itertools.product(slices, (5, 30))]
    return found


def compare(case: Case, fused: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """
    Raises:
        AssertionError: values or gradients differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).to(case.dtype)
    weight = (3 * torch.randn(VOCABULARY, WIDTH, generator=generator)).to(case.dtype)
    bias = torch.randn(VOCABULARY, generator=generator).to(case.dtype) if case.biased else None
    labels = torch.randint(case.classes or VOCABULARY, (ROWS,), generator=generator)
    labels[1] = IGNORE_INDEX
    rounding = 1e-5 if case.dtype == torch.float32 else 1e-2
    got, expected = (run(case, op, hidden, weight, bias, labels) for op in (fused, _loss_and_grad))
    for (losses, gradient), (plain_losses, plain_gradient) in zip(got, expected, strict=True):
        torch.testing.assert_close(losses, plain_losses, rtol=1e-5, atol=1e-5)
        assert gradient.dtype == case.dtype
        torch.testing.assert_close(gradient, plain_gradient, rtol=rounding, atol=1e-6)


def run(
    case: Case,
    op: Callable[..., tuple[Tensor, Tensor]],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
) -> list[tuple[Tensor, Tensor]]:
    """Of each slice of the vocabulary, one after the other, for the interpreter has no threads: a first pass tells the
    others its maxima, a second its sums, the third has both."""
    known: dict[str, dict[int, Tensor]] = {"max": {}, "sum": {}}

    def one(index: int) -> tuple[Tensor, Tensor]:
        def reduce(x: Tensor, how: str) -> Tensor:
            known[how][index] = x.clone()
            stacked = torch.stack(list(known[how].values()))
            return stacked.amax(0) if how == "max" else stacked.sum(0)

        rows = VOCABULARY // case.slices
        here = slice(index * rows, (index + 1) * rows)
        vocab = VocabSlice(here.start, reduce, VOCABULARY) if case.slices > 1 else None
        part = Projection(weight[here], None if bias is None else bias[here], case.softcap, case.classes)
        return op(hidden, part, labels, vocab, case.terms)

    passes = [[one(index) for index in range(case.slices)] for _ in range(3 if case.slices > 1 else 1)]
    return passes[-1]


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") != "1":
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name], os.environ | {"TRITON_INTERPRET": "1"})
    from megatrain.kernels import fused_cross_entropy

    fused_cross_entropy.BLOCK = 16  # several to a row
    for case in cases():
        try:
            compare(case, fused_cross_entropy.loss_and_grad)
        except AssertionError as error:
            print(f"{case}: {error}")
            return 1
    print(f"vocabulary loss interpreted: {len(cases())} cases agree with torch's operators")
    return 0


if __name__ == "__main__":
    sys.exit(main())
