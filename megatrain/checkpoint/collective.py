"""What all ranks of a run do to one folder: one of them acts, all of them know how it ended."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist

from megatrain.base.errors import CheckpointError
from megatrain.base.files import reason

_T = TypeVar("_T")


class Ranks:
    """
    Args:
        group: a gloo group of all ranks, used by nothing else while a method runs.
        folder: to be named by an error of a file that has no name.
    """

    def __init__(self, group: dist.ProcessGroup, folder: Path) -> None:
        self.group = group
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        self._folder = folder

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def on_first(self, action: Callable[[], _T]) -> _T:
        """Run an action on rank 0; give its result, or raise its error, on every rank.

        Raises:
            CheckpointError: of the action, or for its OSError.
        """
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = action()
            except CheckpointError as error:
                outcome[1] = str(error)
            except OSError as error:
                outcome[1] = f"{error.filename or self._folder}: {reason(error)}"
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise CheckpointError(outcome[1])
        result: _T = outcome[0]
        return result

    def on_each(self, action: Callable[[], _T]) -> _T:
        """Run an action on every rank; where one of them fails, raise its CheckpointError on all."""
        result, failure = None, None
        try:
            result = action()
        except CheckpointError as error:
            failure = str(error)
        if first := next(filter(None, self.gathered(failure)), None):
            raise CheckpointError(first)
        return cast(_T, result)

    def gathered(self, mine: _T) -> list[_T]:
        """Every rank's, on every rank."""
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, mine, group=self.group)
        return found
