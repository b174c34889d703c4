"""The reference's log-probabilities in the run's folder: RUN/reference.npy, fp32 [pairs, 2], of training and then of
validation."""

import os
from pathlib import Path

import numpy as np

from megatrain.base.errors import CheckpointError
from megatrain.base.files import sync_folder
from megatrain.tasks.preference.batch import Reference, reference_hash

_NAME = "reference.npy"


def write_reference(folder: Path, references: list[Reference]) -> None:
    """Whole, or not at all."""
    temporary = folder / f".{_NAME}.tmp"
    with open(temporary, "wb") as file:
        np.save(file, np.concatenate([row for reference in references for row in reference]))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / _NAME)
    sync_folder(folder)


def read_reference(folder: Path, references: list[Reference], *, expected: str | None) -> None:
    """Fill in the values.

    Args:
        expected: hash of the first one, as the checkpoint that training goes on from has it.

    Raises:
        CheckpointError: the file is absent, of other pairs, or not the one that the checkpoint was trained with.
    """
    file = folder / _NAME
    try:
        values = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: the log-probabilities of the model that the run began with cannot be read ({error}); restore the "
            "file, or start a run with another run.name"
        ) from None
    rows = [row for reference in references for row in reference]
    if values.dtype != np.float32 or values.shape != (sum(len(row) for row in rows), 2):
        raise CheckpointError(
            f"{file}: is of other pairs than finetune.train and finetune.validation hold now (with "
            "evaluation.sequences); undo the change, or start a run with another run.name"
        )
    at = 0
    for row in rows:
        row[:] = values[at : at + len(row)]
        at += len(row)
    if expected is not None and reference_hash(references[0]) != expected:
        raise CheckpointError(
            f"{file}: is not what the checkpoint was trained with; restore it, or start a run with another run.name"
        )
