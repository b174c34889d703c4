"""What stands on top of the blocks."""

import torch
from torch import Tensor, nn

from megatrain.kernels.cross_entropy import NO_TERMS, LossTerms, Projection, VocabSlice, linear_loss
from megatrain.model.architecture import ModelSection


class LMHead(nn.Module):
    """Projection to the vocabulary; given labels, straight to the loss, so that the logits never exist as a whole.

    Args:
        bias: one for each token.
        softcap: see kernels/cross_entropy.py.
    """

    def __init__(self, config: ModelSection, *, bias: bool = False, softcap: float | None = None) -> None:
        super().__init__()
        self.softcap = softcap
        self.weight = nn.Parameter(torch.empty(config.padded_vocab_size, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.padded_vocab_size)) if bias else None
        self.vocab: VocabSlice | None = None  # set where the weight is a slice of the vocabulary
        self.compiled = False  # set where the loss is to be fused by torch.compile

    def forward(
        self, hidden_BSD: Tensor, labels_BS: Tensor | None = None, terms: LossTerms | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits; with labels, the summed loss; with terms as well, also the cross-entropy in it."""
        projection = Projection(self.weight, self.bias, self.softcap)
        if labels_BS is None:
            return projection.capped(projection.logits(hidden_BSD))
        loss, cross_entropy = linear_loss(
            hidden_BSD.flatten(0, 1),
            projection,
            labels_BS.flatten(),
            terms or NO_TERMS,
            self.vocab,
            compiled=self.compiled,
        )
        return loss if terms is None else (loss, cross_entropy)
