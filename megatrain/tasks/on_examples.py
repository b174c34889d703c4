"""What the tasks share that fine-tune on packed examples: batches, and what there is to say of the data."""

from collections.abc import Iterable, Iterator

from megatrain.base.progress import Progress
from megatrain.base.registry import load_object
from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_set import ExampleSet
from megatrain.data.examples.loader import ExampleEvaluation, ExampleLoader
from megatrain.data.examples.packing import PackedRow
from megatrain.data.loading.batch import Batch
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.tasks.base import DataShare, Loader, Task
from megatrain.tasks.registry import TASKS


class ExampleTask(Task[Batch]):
    """Trains on finetune.train, as the task's `read_examples` reads it, and evaluates on finetune.validation."""

    def __init__(self, config: ResolvedFinetune) -> None:
        self._config = config
        self._training = self._read(config.finetune.train)
        self._validation = self._read(config.finetune.validation) if config.finetune.validation else None
        validation = self._validation.rows if self._validation is not None else []
        self._held_out = validation[: config.evaluation.sequences]
        self._left_out = len(validation) - len(self._held_out)

    def loader(self, share: DataShare) -> Loader[Batch]:
        return ExampleLoader(
            self._training.rows,
            global_batch_size=self._config.training.batch_sizes,
            micro_batch_size=self._config.training.micro_batch_size,
            data_rank=share.rank,
            data_size=share.size,
            seed=self._config.run.seed,
            weight_of=self._weight_of,
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
        yield from self.warnings()
        if self._left_out:
            rows, shown = len(self._held_out) + self._left_out, len(self._held_out)
            yield f"finetune.validation: an evaluation reads {shown:,} of {rows:,} rows (evaluation.sequences)"

    def _weight_of(self, row: PackedRow) -> float:
        """What a row adds to the number that the loss of a global batch is divided by."""
        return row.targets

    def warnings(self) -> list[str]:
        """What there is to say of finetune.train, such as what was cut."""
        return self._training.warnings()

    def _read(self, paths: tuple[str, ...]) -> ExampleSet:
        config = self._config
        found: ExampleSet = load_object(TASKS.get(config.task.name).read_examples)(
            paths,
            Tokenizer.load(config.tokenizer.path),
            config.task,
            template=ChatTemplate.load(config.tokenizer.path),
            sequence_length=config.sequence_length,
            model=config.model,
        )
        return found
