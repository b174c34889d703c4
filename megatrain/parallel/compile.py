"""Compile block by block: every block has the same graph, so it is compiled once, whatever the depth."""

import torch
from torch import nn


def compile_blocks(model: nn.Module) -> None:
    """Compile the forward of each block, in place; names of parameters do not change."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for block in model.get_submodule("blocks").children():
        block.compile()
