"""Boundaries of documents from the document of each position, which is how tests write them down."""

import torch
from torch import Tensor


def cu_seqlens_of(document_ids_BS: Tensor) -> Tensor:
    """int32 [documents + 1]: where each document begins in the flattened batch, and its end."""
    begins_BS = torch.ones_like(document_ids_BS, dtype=torch.bool)
    begins_BS[:, 1:] = document_ids_BS[:, 1:] != document_ids_BS[:, :-1]
    begins = begins_BS.flatten().nonzero()[:, 0]
    return torch.cat((begins, torch.tensor([document_ids_BS.numel()]))).int()
