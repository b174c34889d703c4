"""The nearest semi-orthogonal matrix to a matrix, roughly, by matrix products alone."""

import torch
from torch import Tensor

# K. Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024): chosen for the steepest slope at
# zero, at the price that singular values end between about 0.7 and 1.2, not at 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_SMALLEST_NORM = 1e-7


def orthogonalize(matrix: Tensor, steps: int) -> Tensor:
    """U·Vᵀ of the singular value decomposition U·S·Vᵀ of `matrix`, [m, n], with singular values near 1 for those of S.

    Each step is the odd polynomial a·X + b·(X·Xᵀ)·X + c·(X·Xᵀ)²·X, in the matrix's dtype. Zeros stay zeros.
    """
    a, b, c = COEFFICIENTS
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix  # the smaller of X·Xᵀ and Xᵀ·X
    x = x / torch.linalg.vector_norm(x, dtype=torch.float32).clamp(min=_SMALLEST_NORM)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrix.shape[0] > matrix.shape[1] else x
