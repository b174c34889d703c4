"""What the tasks share that fine-tune on packed examples: batches, and what there is to say of the data."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megatrain.base.progress import Progress
from megatrain.base.registry import load_object
from megatrain.config.resolved import ResolvedFinetune
from megatrain.config.validation_sets import field_of_set
from megatrain.data.examples.cache import fingerprint, open_examples
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_set import ExampleSet
from megatrain.data.examples.loader import ExampleEvaluation, ExampleLoader
from megatrain.data.examples.packing import PackedRow
from megatrain.data.loading.batch import Batch
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.run.directory import RunDir
from megatrain.tasks.base import DataShare, Loader, Task
from megatrain.tasks.registry import TASKS


class ExampleTask(Task[Batch]):
    """Trains on finetune.train, as the task's `read_examples` reads it, and evaluates on finetune.validation.

    Attributes:
        held_out: rows of each validation set that an evaluation reads, by its name.
    """

    def __init__(self, config: ResolvedFinetune) -> None:
        self._config = config
        self._training = self._read(config.finetune.train)
        self._sets = {name: self._read(paths) for name, paths in config.finetune.validation_sets.items()}
        self.held_out = {name: found.rows[: config.evaluation.sequences] for name, found in self._sets.items()}

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

    def validation(self, share: DataShare) -> Mapping[str, Iterable[Batch]]:
        size = self._config.training.micro_batch_size
        return {
            name: ExampleEvaluation(rows, micro_batch_size=size, data_rank=share.rank, data_size=share.size)
            for name, rows in self.held_out.items()
        }

    def lines(self, progress: Progress) -> Iterator[str]:
        yield self._training.describe(self._config, progress)
        yield from self.warnings()
        for name, found in self._sets.items():
            rows, shown = len(found.rows), len(self.held_out[name])
            if shown < rows:
                field = field_of_set("finetune", name)
                yield f"{field}: an evaluation reads {shown:,} of {rows:,} rows (evaluation.sequences)"

    def _weight_of(self, row: PackedRow) -> float:
        """What a row adds to the number that the loss of a global batch is divided by."""
        return row.targets

    def warnings(self) -> list[str]:
        """What there is to say of finetune.train, such as what was cut."""
        return self._training.warnings()

    def _read(self, paths: tuple[str, ...]) -> ExampleSet:
        config = self._config
        given = (paths, Tokenizer.load(config.tokenizer.path), config.task)
        more: dict[str, Any] = {
            "template": ChatTemplate.load(config.tokenizer.path),
            "sequence_length": config.sequence_length,
            "model": config.model,
        }
        run = RunDir(Path(config.run.directory) / config.run.name)
        if (name := fingerprint(*given, **more)) and (mapped := open_examples(run.examples / name)):
            return mapped
        found: ExampleSet = load_object(TASKS.get(config.task.name).read_examples)(*given, **more)
        return found
