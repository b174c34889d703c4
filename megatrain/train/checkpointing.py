"""What a checkpoint of a run holds beside its tensors, and which one a run starts from."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import StorageReader

from megatrain.base.errors import CheckpointError
from megatrain.base.progress import Progress
from megatrain.checkpoint import rewind
from megatrain.checkpoint.best import Best
from megatrain.checkpoint.manifest import read_manifest
from megatrain.checkpoint.progress import progress_of
from megatrain.checkpoint.snapshot import Snapshot
from megatrain.checkpoint.state import STATE, WEIGHT, BaseReference, LoaderState, Parameters, State, read_state
from megatrain.checkpoint.store import CheckpointStore
from megatrain.config import ModelSection
from megatrain.config.resolved import ResolvedFinetune, ResolvedRun
from megatrain.huggingface.base_model import fingerprints
from megatrain.huggingface.config_json import is_pretrained
from megatrain.huggingface.merged import base_of, weights_reader
from megatrain.huggingface.reader import PretrainedReader
from megatrain.model.architecture import parameter_table, row_of
from megatrain.model.class_table import is_class_head
from megatrain.run.directory import locate, parse_resume, parse_step
from megatrain.train.engine import Engine
from megatrain.train.weights import draw_weights


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands, and the loader's state there."""

    progress: Progress
    loader: dict[str, Any] | None  # None at the very start
    checkpoint: Path | None
    best: Best | None = None  # of a run with early stopping

    @property
    def step(self) -> int:
        return self.progress.step


@dataclass(frozen=True, slots=True)
class Start:
    """What weights were started from, and the names of those that it has not, which were drawn from the seed."""

    folder: Path
    drawn: tuple[str, ...] = ()


class Checkpointer:
    """Saves and restores one run.

    Args:
        saved: called after each save with (step, folder, seconds, bytes), on every rank.
        parameters: that a checkpoint holds: "trained" leaves out those that are frozen, and says where a start has
            their values from.
    """

    def __init__(
        self,
        config: ResolvedRun,
        engine: Engine,
        store: CheckpointStore,
        saved: Callable[[int, Path, float, int], None] | None = None,
        *,
        parameters: Parameters = "all",
    ) -> None:
        self._config = config
        self._engine = engine
        self._store = store
        self.saved = saved
        self._parameters = parameters
        self._base: BaseReference | None = None  # of the frozen ones

    def save(
        self,
        step: int,
        loader_state: dict[str, Any],
        batches: Sequence[tuple[int, int, int]] = (),
        best: Best | None = None,
    ) -> Path:
        """Write a checkpoint; see `Progress` for `batches`. The one of the best evaluation is kept from then on."""
        began = time.monotonic()
        state = State(
            step=step,
            loader=LoaderState.model_validate(loader_state),
            batches=[list(batch) for batch in batches],
            model=self._config.model,
            seed=self._config.run.seed,
            parameters=self._parameters,
            base=self._base,
            early_stopping=best,
        )
        tensors = self._engine.sharded_state(for_saving=True, parameters=self._parameters)
        folder = self._store.save(Snapshot(state, tensors))
        self._store.protect(best.step if best else None)
        if self.saved is not None:
            size = sum(record.bytes for record in read_manifest(folder).files.values())
            self.saved(step, folder, time.monotonic() - began, size)
        return folder

    def retain(self) -> None:
        """Delete older checkpoints. For when a step after the newest has been found finite."""
        self._store.retain()

    def resume(self, wanted: str) -> Position:
        """Restore the checkpoint that `wanted` names, and set aside those after it.

        Args:
            wanted: "auto" (the newest that verifies, or the start), "must" (as auto, but there must be one), "never"
                (the start), or a step.

        Raises:
            CheckpointError: there is none where there must be one, it is damaged, or of another model.
        """
        folder = self._choose(wanted)
        branch = self._config.run.branch
        if folder is None and branch is not None:
            raise CheckpointError(
                f"{self._store.run.step(branch.step)}: is not there: the run goes on from it (it was "
                f"{branch.checkpoint}) and has no beginning of its own. Start it again with --cooldown-from"
            )
        self._store.remove_leftovers()
        if folder is None:
            self._store.set_aside(after=-1)
            return Position(Progress(), None, None)
        state = read_state(folder)
        if state.loader is None or state.loader.position is None or state.step != parse_step(folder):
            raise CheckpointError(f"{folder}/{STATE}: has no data position at this step: no run can resume from it")
        progress = progress_of(state.facts(), folder / STATE)
        self._check_model(folder, state.model)
        if state.base is not None:
            self._load_frozen(folder, state)
        self._store.load(folder, self._engine.sharded_state(parameters=state.parameters))
        self._engine.after_load(optimizer_step=state.step)
        self._store.set_aside(after=state.step)
        self._store.protect(state.early_stopping.step if state.early_stopping else None)
        return Position(progress, state.loader_state(), folder, state.early_stopping)

    def load_weights(self, base: Path) -> Start:
        """Start from other weights, with a fresh optimizer; tells the checkpoint, or the model folder, that was read.

        A classifier has a head of its own, drawn from the run's seed, as is what stands below it and the base lacks.

        Args:
            base: a run, for its newest checkpoint that verifies, one of its checkpoints, or a model in Hugging Face's
                format.

        Raises:
            CheckpointError: there is none, it is damaged, or of another model.
        """
        if is_pretrained(base):
            reader = PretrainedReader(base, self._config.model.merged)
            self._refer_to(base)
            return Start(base, self._load_weights(base, reader.names, reader))
        run, checkpoint = locate(base)
        if checkpoint is None:
            newest = self._store.newest_valid(run)
            if newest is None:
                raise CheckpointError(f"{base}: holds no checkpoint that verifies; train it first, or name another run")
            folder = newest
        else:
            folder = self._verified(checkpoint)
        then, now = read_state(folder).model.complete, self._config.model
        if then.adapter is not None:
            raise CheckpointError(
                f"{folder}: has {then.adapter.name} adapters, which cannot be merged into its weights: no other run "
                "starts from it. Start from its own base"
            )
        of_classifier = () if now.num_labels is None else ("num_labels", "classifies")
        self._check_model(folder, then, but=("adapter", "train_layers", *of_classifier))
        has = {(row.name, row.shape) for row in parameter_table(then)}
        wanted = (row for row in parameter_table(now.merged) if not is_class_head(now, row.name))
        names = {row.name for row in wanted if (row.name, row.shape) in has}
        self._refer_to(folder)
        return Start(folder, self._load_weights(folder, names, weights_reader(folder, then, self._verified)))

    def _refer_to(self, folder: Path) -> None:
        """Checkpoints that hold the trained weights only say what the others are."""
        if self._parameters == "trained":
            (sha256,) = fingerprints(str(folder))
            self._base = BaseReference(path=str(folder.resolve()), sha256=sha256)
            self._store.refer(folder)

    def _load_frozen(self, folder: Path, state: State) -> None:
        """What a checkpoint does not hold, from where its run had it."""
        also = (self._config.finetune.base,) if isinstance(self._config, ResolvedFinetune) else ()
        base = base_of(folder, state, also)
        base = base if is_pretrained(base) else self._verified(base)
        model = self._config.model
        frozen = {
            key: tensor
            for key, tensor in self._engine.sharded_state(weights_only=True).items()
            if not row_of(model, key.removeprefix(f"{WEIGHT}.")).trained
        }
        self._store.load(base, frozen, weights_reader(base, model.merged, self._verified))
        self._refer_to(base)

    def _load_weights(
        self, folder: Path, names: Collection[str], reader: StorageReader | None = None
    ) -> tuple[str, ...]:
        """Read the weights, but for those of the model without one of these names: they are drawn. Returns which, but
        for an adapter's, which no base has.

        Raises:
            CheckpointError: one of them is frozen: it would stay as it was drawn.
        """
        drawn = [row for row in parameter_table(self._config.model) if row.name not in names]
        if frozen := [row.name for row in drawn if not row.trained]:
            raise CheckpointError(
                f"{folder}: has no {frozen[0]}, which this run does not train: it would stay as it is drawn from the "
                "seed. Train all parameters, or start from a base that has it"
            )
        keys = {f"{WEIGHT}.{row.name}" for row in drawn}
        tensors = self._engine.sharded_state(weights_only=True)
        self._store.load(folder, {key: tensor for key, tensor in tensors.items() if key not in keys}, reader)
        draw_weights(
            {key: tensor for key, tensor in tensors.items() if key in keys},
            self._config.model,
            self._config.run.seed,
        )
        self._engine.after_load(optimizer_step=0)
        return tuple(row.name for row in drawn if not row.of_adapter)

    def _choose(self, wanted: str) -> Path | None:
        step = parse_resume(wanted)
        if wanted == "never":
            return None
        if not isinstance(step, int):
            folder = self._store.newest_valid()
            if folder is None and (wanted == "must" or self._store.run.steps()):
                raise CheckpointError(
                    f"{self._store.run.checkpoints}: no checkpoint that verifies. "
                    "--resume never begins the run anew, and sets aside what there is"
                )
            if folder is None:
                rewind.refuse_lost_progress(self._store.run, self._config.checkpoint.interval_steps)
            return folder
        folder = self._store.run.step(step)
        if not folder.is_dir():
            have = ", ".join(map(str, self._store.run.steps())) or "none"
            raise CheckpointError(f"{folder}: there is no such checkpoint; steps saved: {have}")
        return self._verified(folder)

    def _verified(self, folder: Path) -> Path:
        if wrong := self._store.find_damage(folder):
            raise CheckpointError("\n".join(wrong))
        return folder

    def _check_model(self, folder: Path, then: ModelSection, *, but: Collection[str] = ()) -> None:
        now = self._config.model
        wrong = [
            f"{folder}: was saved with model.{name}={getattr(then, name, None)!r}, this run has {getattr(now, name)!r}"
            for name in type(now).model_fields
            if name not in but and getattr(then, name, None) != getattr(now, name)
        ]
        if wrong:
            raise CheckpointError("\n".join(wrong))
