"""Which checkpoints of a run others refer to: runs that train a part of their weights, of which a checkpoint holds no
more than that. Each says so in a file in the folder of the run that it starts from, and retention keeps what it names.
No torch.
"""

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from megatrain.base.errors import CheckpointError
from megatrain.base.files import read_model, write_json
from megatrain.run.directory import RunDir, locate, parse_step

_LIMIT = 1 << 16  # bytes of a file


class Reference(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    run: str  # absolute
    step: Annotated[int, Field(ge=0, le=10**15)]

    @property
    def is_gone(self) -> bool:
        """Whether the run has been deleted; not where the folder that held it cannot be seen from here."""
        run = Path(self.run)
        return run.parent.is_dir() and not run.is_dir()


def refer(checkpoint: Path, run: RunDir) -> None:
    """Note in the run that a checkpoint is of that another refers to it.

    Raises:
        OSError: its folder cannot be written.
    """
    base, named = locate(checkpoint)
    step = None if named is None else parse_step(named)
    if step is None:
        return  # a model's folder, which nothing here deletes
    own = str(run.path.resolve())
    name = hashlib.sha256(own.encode()).hexdigest()[:16]
    base.references.mkdir(exist_ok=True)
    write_json(base.references / f"{name}-{step}.json", Reference(run=own, step=step).model_dump())


def referred_to(run: RunDir) -> dict[int, str]:
    """Steps that other runs refer to, and one of these runs for each.

    Raises:
        CheckpointError: a file is not as `refer` writes it: then nothing is known of what may be deleted.
        OSError: the folder cannot be read.
    """
    if not run.references.is_dir():
        return {}
    files = sorted(run.references.glob("*.json"))
    found = [read_model(file, Reference, error=CheckpointError, limit=_LIMIT) for file in files]
    return {one.step: one.run for one in found if not one.is_gone}
