"""One rank's batches of a supervised fine-tuning."""

from collections.abc import Iterable, Iterator
from typing import cast

from megatrain.base.progress import Progress
from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_set import ExampleSet, read_example_set
from megatrain.data.examples.loader import ExampleEvaluation, ExampleLoader
from megatrain.data.loading.batch import Batch
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.tasks.base import DataShare, Loader, Task
from megatrain.tasks.causal_lm import CausalLM, loss_terms
from megatrain.tasks.sft.section import SFTSection


class SFT(CausalLM, Task[Batch]):
    def __init__(self, config: ResolvedFinetune) -> None:
        super().__init__(loss_terms(cast(SFTSection, config.task)))
        self._config = config
        self._training = self._read(config.finetune.train)
        validation = self._read(config.finetune.validation).rows if config.finetune.validation else []
        self._held_out = validation[: config.evaluation.sequences]

    def loader(self, share: DataShare) -> Loader[Batch]:
        return ExampleLoader(
            self._training.rows,
            global_batch_size=self._config.training.global_batch_size,
            micro_batch_size=self._config.training.micro_batch_size,
            data_rank=share.rank,
            data_size=share.size,
            seed=self._config.run.seed,
        )

    def validation(self, share: DataShare) -> Iterable[Batch] | None:
        if not self._held_out:
            return None
        return ExampleEvaluation(
            self._held_out,
            micro_batch_size=self._config.training.micro_batch_size,
            data_rank=share.rank,
            data_size=share.size,
        )

    def lines(self, progress: Progress) -> Iterator[str]:
        yield self._training.describe(self._config, progress)
        yield from self._training.warnings()

    def _read(self, paths: tuple[str, ...]) -> ExampleSet:
        config = self._config
        return read_example_set(
            paths,
            Tokenizer.load(config.tokenizer.path),
            cast(SFTSection, config.task),
            template=ChatTemplate.load(config.tokenizer.path),
            sequence_length=config.sequence_length,
            vocab_size=config.model.padded_vocab_size,
        )
