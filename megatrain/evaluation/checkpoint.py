"""The metrics of a run's own task on one of its checkpoints, in one process: what its loop reported for it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megatrain.base.errors import ConfigError
from megatrain.base.registry import load_object
from megatrain.checkpoint.manifest import find_checkpoint
from megatrain.checkpoint.state import read_state
from megatrain.config import Source
from megatrain.config.resolved import ResolvedFinetune, ResolvedPretrain, ResolvedRun
from megatrain.config.validation_sets import UNNAMED, metric_of_set
from megatrain.data.loading.tensor_batch import TensorBatch
from megatrain.evaluation.classification import ClassReport, confusion_of, report_of
from megatrain.evaluation.classified import Classified, classified
from megatrain.evaluation.ensemble import Ensemble, check_alike
from megatrain.evaluation.generated import ResponseEvaluation
from megatrain.evaluation.ranks import Alone, Ranks
from megatrain.generation.decode import continued, with_cache
from megatrain.generation.sampling import Sampling
from megatrain.hardware.device import device_type
from megatrain.run.directory import RunDir, locate
from megatrain.run.inputs import load_run
from megatrain.tasks.base import Task
from megatrain.tasks.on_examples import ExampleTask
from megatrain.tasks.registry import TASKS

CLASSIFIERS = ("sequence_classification", "token_classification")  # whose answers can be told one by one
_ALL = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """
    Attributes:
        data: what was evaluated on, in words.
        metrics: values by the names under which the loop reports them, and what follows from them.
        classes: of a classifier.
        examples: of a classifier: what it said of each, in their order.
    """

    run: RunDir
    checkpoint: Path
    step: int
    task: str
    data: str
    metrics: dict[str, float]
    others: tuple[Path, ...] = ()  # checkpoints that answered together with it
    classes: ClassReport | None = None
    examples: list[Classified] = field(default_factory=list)


def says_one_label(config: ResolvedRun) -> bool:
    """Whether the run's task tells one of several labels of each text or word."""
    return config.task.name in CLASSIFIERS and getattr(config.task, "problem", "single_label") == "single_label"


class OpenCheckpoint:
    """A checkpoint's model, in the precision that its run computes in, and the run's configuration.

    Args:
        weights: in the place of the checkpoint's own; without an adapter.
        others: runs or checkpoints whose classifiers answer together with it.
        ranks: who shares model and data out; default: this process has all.

    Raises:
        CheckpointError: there is no whole checkpoint.
        ConfigError, DataError: the run's configuration or tokenizer cannot be read, or the others are not alike.
    """

    def __init__(
        self,
        path: Path,
        warn: Callable[[str], None] = lambda text: None,
        weights: Mapping[str, Tensor] | None = None,
        others: Sequence[Path] = (),
        ranks: Ranks | None = None,
    ) -> None:
        self.folder = find_checkpoint(path)
        self.others = [find_checkpoint(other) for other in others]
        self.run, _ = locate(path)
        self.config: ResolvedRun = load_run(self.run, warn=warn, verify=True)
        check_alike(self.run, self.config, self.others)
        self.step = read_state(self.folder).step
        self.ranks = ranks or Alone(torch.device(device_type()))
        self.model = self._model(self.folder, self.config, weights)
        if self.others:
            members = [self._model(other, load_run(locate(other)[0])) for other in self.others]
            problem = getattr(self.config.task, "problem", "single_label")
            self.model = Ensemble([self.model, *members], problem)

    def _model(self, folder: Path, config: ResolvedRun, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        dtype = torch.float32 if config.training.precision == "fp32" else torch.bfloat16
        return self.ranks.model(folder, read_state(folder).model.complete, weights, dtype)

    def task(self, config: ResolvedRun) -> Task[Any]:
        """The run's task, on other data where the configuration names some."""
        made: Task[Any] = load_object(TASKS.get(config.task.name).task)(config)
        return made

    def batches(self, task: Task[Any]) -> Iterable[TensorBatch]:
        """Of the task's validation. Raises ConfigError where there is none."""
        found = task.validation_sets(self.ranks.share).get(UNNAMED)
        if found is None:
            section = "finetune" if isinstance(self.config, ResolvedFinetune) else "data"
            raise ConfigError(
                f"{self.run}: {section}.validation: is empty: there is nothing to evaluate on. Name files of examples, "
                "or take --split train"
            )
        return found


def evaluate(
    path: Path,
    files: Sequence[str] = (),
    *,
    split: str = "validation",
    warn: Callable[[str], None] = lambda text: None,
    weights: Mapping[str, Tensor] | None = None,
    others: Sequence[Path] = (),
    ranks: Ranks | None = None,
) -> Evaluation:
    """Evaluate a run's newest checkpoint that verifies, or one that is named.

    Args:
        files: examples for the run's task, or, of pretraining, prepared folders; default: the run's own `split`, of
            which an evaluation reads evaluation.sequences, as the loop does.
        split: validation, train, or the name of a validation set. Of "validation" that has several sets, the metrics
            of all are found, as the loop reports them.
        warn: told what else there is to know.
        weights, others, ranks: see `OpenCheckpoint`. With ranks, a collective with the same result on each.

    Raises:
        CheckpointError, ConfigError: there is no whole checkpoint, or nothing to evaluate on.
        DataError: a file cannot be read, or examples are unusable; names file and line.
    """
    opened = OpenCheckpoint(path, warn, weights, others, ranks)
    sets = _sets(opened.config)
    if not files and split == "validation" and sets and UNNAMED not in sets:
        again = partial(evaluate, path, weights=weights, others=others, ranks=ranks)
        return _together({name: again(split=name) for name in sets})
    if opened.config.training.precision == "fp8":
        warn("the run multiplies in fp8 and is evaluated in bf16: its loop may have reported other last digits")
    config, data = on_data(opened.config, files, split)
    task = opened.task(config)
    if files and isinstance(task, ExampleTask):
        for line in task.warnings():
            warn(line)
    totals, examples = _passed(opened, task, config)
    metrics = task.evaluation_metrics(totals)
    for responses in ResponseEvaluation.of(config).values():
        metrics |= responses.measure(responses.generated(_answered(opened, responses)))
    names = config.task.classes
    there, said = ([number for one in examples for number in getattr(one, which)] for which in ("there", "said"))
    return Evaluation(
        run=opened.run,
        checkpoint=opened.folder,
        others=tuple(opened.others),
        step=opened.step,
        task=config.task.name,
        data=data,
        metrics=metrics,
        classes=report_of(confusion_of(there, said, len(names)), names) if examples else None,
        examples=examples,
    )


def _passed(opened: OpenCheckpoint, task: Task[Any], config: ResolvedRun) -> tuple[dict[str, Any], list[Classified]]:
    """One pass: the task's sums and records over all ranks, and what a classifier says."""
    ranks = opened.ranks
    records: dict[str, list[Tensor]] = {}
    examples: list[Classified] = []
    with torch.no_grad():
        for whole in opened.batches(task):
            batch = ranks.mine(whole)
            for name, value in task.evaluation_sums(opened.model, batch).items():
                records.setdefault(name, []).append(value.double().cpu())
            if says_one_label(config):
                examples += classified(opened.model, whole, ranks)  # type: ignore[arg-type]
    # numbers are summed; rows of numbers, one an example, stay rows
    mine = {name: torch.cat(parts) if parts[0].ndim else torch.stack(parts).sum() for name, parts in records.items()}
    parts = ranks.gathered((ranks.counts, mine, examples))
    totals: dict[str, Any] = {}
    for name, value in mine.items():
        found = [part[1][name] for part in parts if part[0][0]]
        totals[name] = torch.cat(found) if value.ndim else torch.stack(found).sum().item()
    examples = [one for part in parts if part[0][1] for one in part[2]]
    return totals, examples


def _together(found: dict[str, Evaluation]) -> Evaluation:
    """Metrics of named sets, under the names by which the loop reports them."""
    metrics = {metric_of_set(name, key): value for name, one in found.items() for key, value in one.metrics.items()}
    return replace(next(iter(found.values())), metrics=metrics, data=", ".join(found), classes=None, examples=[])


def _sets(config: ResolvedRun) -> dict[str, tuple[Any, ...]]:
    section = config.data if isinstance(config, ResolvedPretrain) else config.finetune
    return dict(section.validation_sets)


def _own(config: ResolvedRun, split: str) -> tuple[Any, ...]:
    """Sources or files of the run's own data. Raises ConfigError where there are none of this name."""
    sets, section = _sets(config), config.data if isinstance(config, ResolvedPretrain) else config.finetune
    if split == "train":
        return section.train
    if split == "validation":
        return sets.get(UNNAMED, ())
    if split not in sets:
        named = ", ".join(["validation", "train", *filter(None, sets)])
        raise ConfigError(f"--split {split}: is not among the data that the run has: {named}")
    return sets[split]


def on_data(config: ResolvedRun, files: Sequence[str], split: str) -> tuple[ResolvedRun, str]:
    """The run's configuration with what is to be evaluated on as its validation, and what that is, in words."""
    evaluation = config.evaluation.model_copy(update={"sequences": _ALL}) if files else config.evaluation
    if isinstance(config, ResolvedPretrain):
        sources = tuple(Source(path=path) for path in files) or _own(config, split)
        changed: Any = {"data": config.data.model_copy(update={"validation": sources})}
        said = ", ".join(source.path for source in sources)
    else:
        paths = tuple(files) or _own(config, split)
        # the task reads its training examples as well, which play no part
        section = config.finetune.model_copy(update={"train": paths or config.finetune.train, "validation": paths})
        changed = {"finetune": section}
        said = ", ".join(paths)
    return config.model_copy(update={"evaluation": evaluation, **changed}), said


def _answered(opened: OpenCheckpoint, responses: ResponseEvaluation) -> list[list[int]]:
    """What the model generates behind each prompt."""
    made: dict[int, list[int]] = {}
    size = opened.config.training.micro_batch_size
    first, step = opened.ranks.replica
    mine = range(first, len(responses.prompts), step)
    for begin in range(0, len(mine), size):
        numbers = mine[begin : begin + size]
        prompts = [responses.prompts[number] for number in numbers]
        places = max(map(len, prompts)) + responses.max_new_tokens
        with with_cache(opened.model, places=places, ranks=opened.ranks.generation) as next_logits:
            answers = continued(next_logits, prompts, Sampling(), ranks=opened.ranks.generation, **responses.options())
            made |= dict(zip(numbers, answers, strict=True))
    whole = {number: tokens for one in opened.ranks.gathered(made) for number, tokens in one.items()}
    return [whole[number] for number in range(len(responses.prompts))]
