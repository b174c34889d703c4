"""A model of `transformers` as a family's module: called, and looked into, like megatrain's own.

Shape suffixes: B batch, S sequence, D hidden size, V vocabulary.
"""

from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from megatrain.base.errors import ConfigError
from megatrain.kernels.cross_entropy import LossTerms
from megatrain.model.architecture import parameter_table
from megatrain.model.families.transformers import attention
from megatrain.model.families.transformers.build import causal_lm, configured, parameters_on_meta
from megatrain.model.families.transformers.logits_loss import loss_of_logits
from megatrain.model.families.transformers.section import TransformersSection
from megatrain.model.lm_head import Head


class LossHead(Head):
    """The model's head, called by its own code with hidden states alone: what is asked of them stands in `asked`.

    Attributes:
        asked: labels and terms of the forward pass that is under way; None: its logits.
        cross_entropy: of the last pass.
    """

    def __init__(self, linear: nn.Linear) -> None:
        rows, width = linear.weight.shape
        super().__init__(rows, width)
        self.weight, self.bias = cast(nn.Parameter, linear.weight), linear.bias
        self.asked: tuple[Tensor, LossTerms | None] | None = None
        self.cross_entropy: Tensor | None = None

    def forward(self, hidden_BSD: Tensor, *_: Any) -> Tensor:
        """Logits [B, S, V], or a loss as `Head.forward` gives it."""
        out = super().forward(hidden_BSD, *(self.asked or ()))
        if isinstance(out, tuple):
            out, self.cross_entropy = out
        return out


class TransformersModel(nn.Module):
    """Dropout is left out: nothing here is random."""

    def __init__(self, config: TransformersSection) -> None:
        """
        Raises:
            ConfigError: the installed transformers makes another model of the configuration than the one that the run
                was resolved with.
        """
        super().__init__()
        found = config.described
        attention.register()
        with parameters_on_meta():
            said = {**config.configured, "vocab_size": config.padded_vocab_size}
            self.model = causal_lm(configured(said), None if found.mixes else attention.NAME)
        self._found = found
        self._places = {"blocks": found.layers, "embedding": found.embedding, "head": found.head}
        if found.projects:
            self.model.set_submodule(found.head, LossHead(cast(nn.Linear, self.model.get_submodule(found.head))))
        for module in self.model.modules():
            if isinstance(module, nn.Embedding):
                module.padding_idx = None  # whose gradient torch would leave out: here each row may be a token's
        self.model.eval()
        self.block_classes = tuple({type(block) for block in self.get_submodule("blocks").children()})
        self._check_table(config)

    def get_submodule(self, target: str) -> nn.Module:
        """The model's own modules go by the names that a family's have as well."""
        return super().get_submodule(f"model.{self._places[target]}" if target in self._places else target)

    def train(self, mode: bool = True) -> Self:
        """Of the model's own code nothing distinguishes training: no dropout, no layers that are skipped."""
        super().train(mode)
        self.model.train(False)
        return self

    def forward(
        self,
        input_ids_BS: Tensor,
        labels_BS: Tensor | None = None,
        *,
        position_ids_BS: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        terms: LossTerms | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The summed loss over all labels (fp32 scalar), or without labels the logits [B, S, V]; as
        `families.llama.module.Llama.forward`."""
        options: dict[str, Any] = {"input_ids": input_ids_BS, "use_cache": False}
        if self._found.takes_positions:  # some models would count them from a mask
            places = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device).expand_as(input_ids_BS)
            options["position_ids"] = places if position_ids_BS is None else position_ids_BS
        if cu_seqlens is not None:
            if self._found.mixes is not None:
                raise ConfigError(f"documents of a sequence would see each other, for {self._found.mixes}")
            options["attention_mask"] = attention.as_mask(cu_seqlens)
        head = self.get_submodule("head")
        if labels_BS is None or not isinstance(head, LossHead):
            logits_BSV: Tensor = self.model(**options).logits
            return logits_BSV if labels_BS is None else loss_of_logits(logits_BSV, labels_BS, terms)
        head.asked = labels_BS, terms
        try:
            loss: Tensor = self.model(**options).logits
        finally:
            head.asked = None
        return loss if terms is None or terms.by_token or head.cross_entropy is None else (loss, head.cross_entropy)

    def _check_table(self, config: TransformersSection) -> None:
        there = {name: tuple(parameter.shape) for name, parameter in self.named_parameters()}
        wanted = {row.name: row.shape for row in parameter_table(config)}
        other = sorted(name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name))
        if other:
            import transformers

            raise ConfigError(
                f"model.configuration: transformers {transformers.__version__} makes {other[0]} "
                f"{there.get(other[0])}, and the run was resolved with {wanted.get(other[0])}: install the version of "
                "then (environment.json)"
            )


assert torch  # keeps the import that types need
