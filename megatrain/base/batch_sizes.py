"""How many samples each optimizer step of a run reads. Free of torch, so that a login node can tell as well.

A pure function of the samples consumed before the step: a run that resumes anywhere, on any number of ranks, goes on
with the steps that it would have had.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Global batch sizes, in samples over all ranks.

    Args:
        final: after all stages.
        stages: (sample, size), in the order of the samples: steps that begin before that sample have that size. A step
            is never cut: one that begins before the sample may end after it.
    """

    final: int
    stages: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, given: "int | BatchSizes") -> "BatchSizes":
        return given if isinstance(given, BatchSizes) else cls(given)

    @property
    def every(self) -> tuple[int, ...]:
        """Each size once, the first the smallest where sizes grow."""
        return tuple(dict.fromkeys((*(size for _, size in self.stages), self.final)))

    def at(self, samples: int) -> int:
        """Of the step that begins at that sample."""
        return next((size for until, size in self.stages if samples < until), self.final)

    def stretches(self, samples: int) -> Iterator[tuple[int, int, int | None]]:
        """(sample, size, steps) of equal steps, from a step that begins at `samples` on; the last has no end: None."""
        for until, size in self.stages:
            if samples < until:
                steps = -(-(until - samples) // size)
                yield samples, size, steps
                samples += steps * size
        yield samples, self.final, None

    def after(self, samples: int, steps: int = 1) -> int:
        """Samples consumed `steps` steps after `samples` of them."""
        for first, size, there in self.stretches(samples):
            if there is None or steps <= there:
                return first + steps * size
            steps -= there
        raise AssertionError("the last stretch has no end")

    def steps_until(self, samples: int, end: int) -> int:
        """Steps after `samples` of which the last reaches `end`."""
        before = 0
        for first, size, there in self.stretches(samples):
            needed = max(0, -(-(end - first) // size))
            if there is None or needed <= there:
                return before + needed
            before += there
        raise AssertionError("the last stretch has no end")

    def step_of(self, sample: int, first: int = 0) -> tuple[int, int]:
        """The step that reads a sample, where one begins at `first`: its first sample, and its size."""
        for begin, size, there in self.stretches(first):
            if there is None or sample < begin + there * size:
                return begin + (sample - begin) // size * size, size
        raise AssertionError("the last stretch has no end")
