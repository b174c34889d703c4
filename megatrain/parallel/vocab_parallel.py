"""The two ends of the model when each tensor-parallel rank holds a run of vocabulary rows."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from megatrain.kernels.cross_entropy import VocabSlice
from megatrain.parallel import collectives


def make_embedding_vocab_parallel(embedding: nn.Module, rank: int) -> None:
    """Look up only the ids in this rank's slice; all others give zeros, which the region's reduction fills in."""

    def forward(ids_BS: Tensor) -> Tensor:
        weight = embedding.weight
        assert isinstance(weight, Tensor)
        rows = weight.shape[0]
        local_BS = ids_BS - rank * rows
        here_BS = (local_BS >= 0) & (local_BS < rows)
        vectors_BSD = F.embedding(local_BS.where(here_BS, torch.zeros_like(local_BS)), weight)
        return vectors_BSD * here_BS[..., None].to(vectors_BSD.dtype)

    embedding.forward = forward


def make_head_vocab_parallel(head: nn.Module, rank: int, group: dist.ProcessGroup) -> None:
    """Tell the head's loss which slice of the vocabulary its weight is. Logits without labels stay local."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    head.vocab = VocabSlice(  # type: ignore[assignment]
        start=rank * weight.shape[0],
        reduce=lambda x, op: collectives.all_reduce(x, group, op),
        size=weight.shape[0] * dist.get_world_size(group),
    )
