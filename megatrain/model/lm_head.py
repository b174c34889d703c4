"""What stands on top of the blocks: a projection to the vocabulary, or to classes."""

from typing import Any

import torch
from torch import Tensor, nn

from megatrain.kernels.cross_entropy import NO_TERMS, LossTerms, Projection, VocabSlice, linear_loss
from megatrain.kernels.token_losses import linear_token_losses
from megatrain.model.architecture import ModelSection


class Head(nn.Module):
    """Projection of hidden states; given labels, straight to the loss, so that the logits never exist as a whole.

    Args:
        rows: of the weight.
        bias: one for each row.
        softcap, classes: see kernels/cross_entropy.py.
    """

    def __init__(
        self, rows: int, width: int, *, bias: bool = False, softcap: float | None = None, classes: int | None = None
    ) -> None:
        super().__init__()
        self.softcap = softcap
        self.classes = classes
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.bias = nn.Parameter(torch.zeros(rows)) if bias else None
        self.vocab: VocabSlice | None = None  # set where the weight is a slice of the rows
        self.compiled = False  # set where the loss is to be fused by torch.compile

    def forward(
        self, hidden_BSD: Tensor, labels_BS: Tensor | None = None, terms: LossTerms | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits; with labels, the summed loss; with terms as well, also the cross-entropy in it; with terms by token,
        the cross-entropy of each token, fp32 [B, S]."""
        projection = Projection(self.weight, self.bias, self.softcap, self.classes)
        if labels_BS is None:
            return self.logits(projection, hidden_BSD)
        if terms is not None and terms.by_token:
            losses_N = linear_token_losses(hidden_BSD.flatten(0, 1), projection, labels_BS.flatten(), self.vocab)
            return losses_N.view(labels_BS.shape)
        loss, cross_entropy = linear_loss(
            hidden_BSD.flatten(0, 1),
            projection,
            labels_BS.flatten(),
            terms or NO_TERMS,
            self.vocab,
            compiled=self.compiled,
        )
        return loss if terms is None else (loss, cross_entropy)

    def logits(self, projection: Projection, hidden_BSD: Tensor) -> Tensor:
        """Of the rows that the weight holds."""
        return projection.capped(projection.logits(hidden_BSD))


class LMHead(Head):
    """Projection to the vocabulary."""

    def __init__(self, config: ModelSection, *, bias: bool = False, softcap: float | None = None) -> None:
        super().__init__(config.padded_vocab_size, config.hidden_size, bias=bias, softcap=softcap)


class ClassHead(Head):
    """Projection to the labels of a classifier. Its rows are padded. Without labels given, logits are of all of them
    on every rank, and of a classifier of tokens, of whole sequences: an entity has several tokens. Their gradient is of
    what one rank makes of them, where each makes the same."""

    def __init__(self, config: ModelSection, *, bias: bool) -> None:
        assert config.num_labels is not None, "else it is a language model"
        super().__init__(config.padded_labels, config.hidden_size, bias=bias, classes=config.num_labels)
        self.of_tokens = config.classifies != "sequence"

    def logits(self, projection: Projection, hidden_BSD: Tensor) -> Tensor:
        """Fp32 [B, S, labels], also where the weight is a slice: they are few."""
        logits_BSC = projection.logits(hidden_BSD).float()
        if self.vocab is not None:
            logits_BSC = _Whole.apply(logits_BSC, self.vocab)
        return logits_BSC[..., : self.classes]


class _Whole(torch.autograd.Function):
    """The logits of all slices of the classes, on every rank."""

    @staticmethod
    def forward(ctx: Any, logits_BSC: Tensor, vocab: VocabSlice) -> Tensor:
        ctx.mine = slice(vocab.start, vocab.start + logits_BSC.shape[-1])
        whole_BSC = logits_BSC.new_full((*logits_BSC.shape[:-1], vocab.size), -torch.inf)
        whole_BSC[..., ctx.mine] = logits_BSC
        return vocab.reduce(whole_BSC, "max")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][..., ctx.mine].contiguous(), None
