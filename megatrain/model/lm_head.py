"""What stands on top of the blocks."""

import torch
from torch import Tensor, nn

from megatrain.kernels.cross_entropy import VocabSlice, linear_cross_entropy
from megatrain.model.architecture import ModelSection


class LMHead(nn.Module):
    """Projection to the vocabulary; given labels, straight to the loss, so that the logits never exist as a whole."""

    def __init__(self, config: ModelSection) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.padded_vocab_size, config.hidden_size))
        self.vocab: VocabSlice | None = None  # set where the weight is a slice of the vocabulary
        self.compiled = False  # set where the loss is to be fused by torch.compile

    def forward(self, hidden_BSD: Tensor, labels_BS: Tensor | None = None) -> Tensor:
        if labels_BS is None:
            return hidden_BSD @ self.weight.T
        labels = labels_BS.flatten()
        return linear_cross_entropy(hidden_BSD.flatten(0, 1), self.weight, labels, self.vocab, compiled=self.compiled)
