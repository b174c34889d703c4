"""megatrain in a notebook or a script: what a run left, without a launcher or a process group.

    import megatrain

    run = megatrain.open_run("runs/llama-125m")
    run.config.training.global_batch_size
    pandas.DataFrame(run.metrics())
    model = run.latest().to_transformers()              # a transformers.PreTrainedModel
    weights = run.checkpoint(1000).state_dict()         # {name: fp32 tensor}, by the model's own names
    data = megatrain.open_data("data/web", sequence_length=2048)
    torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)

Everything here reads, and changes nothing. What is wrong raises a `MegatrainError` that names the file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.checkpoint.manifest import find_checkpoint, list_checkpoints, verify
from megatrain.checkpoint.read import read_tensors
from megatrain.config import Config
from megatrain.data.loading.batch import assemble_rows
from megatrain.data.loading.shards import PreparedData
from megatrain.huggingface.export import DType, load_transformers
from megatrain.huggingface.merged import MergedWeights
from megatrain.monitor.metrics_file import read_metrics
from megatrain.run.directory import RunDir, locate, parse_step
from megatrain.run.inputs import load_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def open_run(path: str | Path) -> "Run":
    """A run by its folder.

    Raises:
        ConfigError: there is no run, or its config.yaml is not one.
    """
    return Run(path)


def open_data(path: str | Path, *, sequence_length: int, attend_across_documents: bool = False) -> "PreparedDataset":
    """Prepared data as a map-style torch dataset; see `PreparedDataset`.

    Raises:
        DataError: it is not prepared data, is damaged, or has no sequence of this length.
    """
    return PreparedDataset(path, sequence_length=sequence_length, attend_across_documents=attend_across_documents)


class Run:
    """A run's folder.

    Attributes:
        path: the folder.
        config: the configuration, with every "auto" decided.
    """

    def __init__(self, path: str | Path) -> None:
        self._run = RunDir(path)
        if not self._run.config.is_file():
            raise ConfigError(f"{path}: there is no run here (looked for {self._run.config})")
        self.path = self._run.path
        self.config: Config = load_run(self._run)

    def __repr__(self) -> str:
        return f"megatrain.open_run({str(self.path)!r})"

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, one per report and per evaluation, in order: as `pandas.DataFrame` takes them.

        Raises:
            DataError: nothing has been reported yet, or the file is damaged.
        """
        return read_metrics(self._run.metrics)

    def checkpoints(self) -> list["Checkpoint"]:
        """Committed checkpoints, the oldest first. Their bytes are verified when they are read."""
        return [Checkpoint(info.path) for info in list_checkpoints(self._run)]

    def checkpoint(self, step: int) -> "Checkpoint":
        """Raises CheckpointError when there is none of this step."""
        if step not in self._run.steps():
            have = ", ".join(map(str, self._run.steps())) or "none"
            raise CheckpointError(f"{self.path}: has no checkpoint of step {step}; steps saved: {have}")
        return Checkpoint(self._run.step(step))

    def latest(self) -> "Checkpoint":
        """The newest checkpoint whose bytes verify.

        Raises:
            CheckpointError: there is none.
        """
        return Checkpoint(find_checkpoint(self.path))


class Checkpoint:
    """One checkpoint of a run.

    Attributes:
        path: its folder.
        step: optimizer steps done.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        step = parse_step(self.path)
        if step is None:
            raise CheckpointError(f"{path}: is not the folder of a checkpoint, step-…")
        self.step = step

    def __repr__(self) -> str:
        return f"<megatrain checkpoint {self.path}>"

    def verify(self) -> list[str]:
        """Compare every file with its SHA-256; a message for each that differs, so an empty list is good."""
        return verify(self.path)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, fp32 on the CPU, by the names of the model's parameters. Tied weights stand once; an adapter is
        merged into the weights of its base.

        Raises:
            CheckpointError: a file is missing or damaged, or the base of an adapter is gone.
        """
        return MergedWeights().read(find_checkpoint(self.path))

    def optimizer_state(self, kind: str) -> dict[str, Tensor]:
        """One kind of optimizer state, such as "exp_avg", whole and by the names of the parameters.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        return read_tensors(find_checkpoint(self.path), kind=kind)

    def to_transformers(self, *, dtype: DType = "float32") -> "PreTrainedModel":
        """The model that `megatrain export` writes, in memory: weights under transformers' names, in evaluation mode.

        Raises:
            CheckpointError: a file is missing or damaged, or a weight does not fit the dtype.
        """
        return load_transformers(self.path, locate(self.path)[0], dtype=dtype)


class PreparedDataset(Dataset[dict[str, Tensor]]):
    """Sequences of prepared data, in the order in which they lie on disk; a shuffling sampler is the caller's.

    An item is what training feeds the model of one sequence of S tokens: `input_ids`, `labels` and `position_ids`, each
    int64 [S]. A label is the next token, or -100 where there is none.

    Args:
        path: a folder written by `megatrain data prepare`, or its http(s):// or s3:// address.
        sequence_length: S; divides the block length of the data.
        attend_across_documents: positions count through the sequence instead of from 0 in each document.
    """

    def __init__(self, path: str | Path, *, sequence_length: int, attend_across_documents: bool = False) -> None:
        self._data = PreparedData(path)
        self._length = sequence_length
        self._across = attend_across_documents
        self._rows = self._data.manifest.rows(sequence_length)
        self._of_block = self._data.manifest.rows_per_block(sequence_length)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self._data.path}: sequence {index} of {len(self)}")
        block, row = divmod(index % len(self), self._of_block)
        rows = self._data.read_rows(np.array([block]), np.array([row]), self._length)
        batch = assemble_rows(rows, attend_across_documents=self._across)
        return {name: getattr(batch, name)[0] for name in ("input_ids", "labels", "position_ids")}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        self._data.close()
