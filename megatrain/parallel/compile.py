"""Compile block by block: every block has the same graph, so it is compiled once, whatever the depth."""

import torch
from torch import nn


def compile_blocks(model: nn.Module) -> None:
    """Compile the forward of each block, in place; names of parameters do not change.

    The forward and not the module's call: hooks on the block itself, such as ZeRO-3's gathering, stay out of the graph.
    """
    for block in model.get_submodule("blocks").children():
        block.forward = torch.compile(block.forward)
