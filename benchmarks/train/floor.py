"""The matrix products of a step and nothing else: no step that makes them can be faster."""

import torch

from benchmarks.train.contestants import Step
from benchmarks.train.shape import Shape
from megatrain.model.architecture import rows


def floor(shape: Shape, precision: str) -> Step:
    """Forward, gradient of the input and gradient of the weight, of every linear layer and of the vocabulary."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokens = shape.micro_batch * shape.length
    matrices = []  # [out, in] of every product
    for row in rows(shape.section):
        if len(row.shape) == 2 and row.name != "embedding.weight":
            matrices += [row.shape] * row.count
    made = {size: torch.randn(size, dtype=dtype) for size in set(matrices)}
    x = {size: torch.randn(tokens, size, dtype=dtype) for pair in made for size in pair}

    def step() -> None:
        for _ in range(shape.accumulation):
            for out, width in matrices:
                weight = made[out, width]
                x[width] @ weight.T
                x[out] @ weight
                x[out].T @ x[width]

    return step
