"""The same bits at every start: a CPU gives them anyway; on a GPU some kernels add in whatever order threads finish,
attention's backward pass among them.
"""

import os

import torch


def make_deterministic() -> None:
    """Take kernels with a fixed order of addition only. Call before the first product: cuBLAS reads its setting once.

    An operator that has no such kernel raises RuntimeError, and names itself.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
