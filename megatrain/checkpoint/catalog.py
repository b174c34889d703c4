"""Which checkpoints of a run verify: all of its ranks share the reading."""

from collections.abc import Callable
from pathlib import Path

from megatrain.checkpoint.collective import Ranks
from megatrain.checkpoint.manifest import verify
from megatrain.run.directory import RunDir


class Catalog:
    """
    Args:
        report: called with a line for people, on rank 0 only.
        beat: called with what is being done, while files are read.
    """

    def __init__(self, ranks: Ranks, *, report: Callable[[str], None], beat: Callable[[str], None]) -> None:
        self._ranks = ranks
        self._report = report
        self._beat = beat

    def newest_valid(self, run: RunDir) -> Path | None:
        """The newest checkpoint whose every byte verifies. Names each one that is skipped. Collective."""
        for step in reversed(self._ranks.on_first(run.step_folders)):
            if not self.find_damage(run.step(step)):
                return run.step(step)
        return None

    def find_damage(self, folder: Path) -> list[str]:
        """What is wrong with a checkpoint, reported and returned on every rank; empty when its bytes verify."""
        mine = verify(folder, part=self._ranks.rank, parts=self._ranks.world_size, beat=self._beat)
        found = sorted({line for lines in self._ranks.gathered(mine) for line in lines})
        if self._ranks.is_first:
            for line in found:
                self._report(f"warning: damaged checkpoint: {line}")
        return found
