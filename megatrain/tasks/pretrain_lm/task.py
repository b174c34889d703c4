"""One rank's batches of a pretraining."""

from typing import cast

from megatrain.config import Source
from megatrain.config.resolved import ResolvedPretrain
from megatrain.data.loading.batch import Batch
from megatrain.data.loading.build_loader import build_loader
from megatrain.data.loading.evaluation import EvaluationLoader
from megatrain.tasks.base import DataShare, Loader, Task
from megatrain.tasks.causal_lm import CausalLM, known_byte_lengths, loss_terms
from megatrain.tasks.pretrain_lm import PretrainLMSection


class PretrainLM(CausalLM, Task[Batch]):
    def __init__(self, config: ResolvedPretrain) -> None:
        tokenizer = config.tokenizer.path if config.tokenizer is not None and config.data.validation else None
        super().__init__(loss_terms(cast(PretrainLMSection, config.task)), known_byte_lengths(tokenizer))
        self._config = config

    def loader(self, share: DataShare) -> Loader[Batch]:
        return build_loader(self._config, data_rank=share.rank, data_size=share.size, pin_memory=share.pin_memory)

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
        )
