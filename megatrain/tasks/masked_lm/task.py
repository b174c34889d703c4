"""One rank's batches of masked language modelling."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch import Tensor

from megatrain.config import PretrainConfig, Source
from megatrain.config.resolved import ResolvedPretrain
from megatrain.data.loading.batch import Batch
from megatrain.data.loading.evaluation import EvaluationLoader
from megatrain.data.loading.loader import TrainLoader
from megatrain.data.loading.masking import Masking
from megatrain.data.text.tokenizer_files import read_tokenizer
from megatrain.tasks.base import DataShare, Loader, LossSums, Model, Task
from megatrain.tasks.causal_lm import CausalLM, loss_terms
from megatrain.tasks.masked_lm.section import MaskedLMSection
from megatrain.tasks.masked_lm.vocabulary import continuations, mask_id, special_tokens

_VALIDATION = 0x5EED  # of its masks: they are others than those of training


class MaskedLM(Task[Batch]):
    """Cross-entropy of hidden tokens, over the positions that have a label."""

    def __init__(self, config: ResolvedPretrain) -> None:
        self._config = config
        self._objective = CausalLM(loss_terms(cast(MaskedLMSection, config.task)))
        self._masking = masking_of(config)

    def loader(self, share: DataShare) -> Loader[Batch]:
        training = self._config.training
        return TrainLoader(
            self._config.data,
            global_batch_size=training.batch_sizes,
            micro_batch_size=training.micro_batch_size,
            data_rank=share.rank,
            data_size=share.size,
            seed=self._config.run.seed,
            pin_memory=share.pin_memory,
            masking=self._masking,
        )

    def validation(self, share: DataShare) -> dict[str, EvaluationLoader]:
        return {name: self._of_set(sources, share) for name, sources in self._config.data.validation_sets.items()}

    def _of_set(self, sources: tuple[Source, ...], share: DataShare) -> EvaluationLoader:
        data = self._config.data
        return EvaluationLoader(
            sources,
            sequence_length=data.sequence_length,
            attend_across_documents=data.attend_across_documents,
            sequences=self._config.evaluation.sequences,
            micro_batch_size=self._config.training.micro_batch_size,
            data_rank=share.rank,
            data_size=share.size,
            reading=data.reading,
            masking=replace(self._masking, seed=_VALIDATION),
        )

    def loss(self, model: Model, batch: Batch) -> LossSums:
        """Nats, over the hidden tokens."""
        return self._objective.loss(model, batch)

    def evaluation_sums(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        return self._objective.evaluation_sums(model, batch)

    def evaluation_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return self._objective.evaluation_metrics(sums)


def masking_of(config: PretrainConfig) -> Masking:
    """Of training.

    Args:
        config: with a model that is complete.
    """
    section = cast(MaskedLMSection, config.task)
    assert config.tokenizer is not None, "a rule of the task"
    files, size = read_tokenizer(config.tokenizer.path), config.model.padded_vocab_size
    special = special_tokens(files, size)
    hidden = mask_id(section, files, config.tokenizer.path)
    special[hidden] = True
    return Masking(
        seed=config.run.seed,
        rate=section.mask_rate,
        mask_share=section.mask_share,
        random_share=section.random_share,
        mask_id=hidden,
        is_special=special,
        continues=continuations(files, size) if section.whole_words else None,
    )
