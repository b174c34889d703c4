"""How far a run is, counted by what it has consumed. Free of torch, so that a login node can tell as well.

The position of the loader, in samples, is the truth. Steps alone do not say how much was read: the global batch may
change at any resume.
"""

from dataclasses import dataclass

from megatrain.base.batch_sizes import BatchSizes


@dataclass(frozen=True, slots=True)
class Progress:
    """Optimizer steps done, and samples consumed by them over all ranks.

    Args:
        batches: (step, samples, global batch size) where each size began, oldest first. What lies before the first of
            them, as all steps of a checkpoint that does not record sizes, is taken to have had equal steps.
    """

    step: int = 0
    samples: int = 0
    batches: tuple[tuple[int, int, int], ...] = ()

    def after_step(self, global_batch_size: int) -> "Progress":
        """One optimizer step further."""
        batches = self.batches
        if not batches or batches[-1][2] != global_batch_size:
            batches = (*batches, (self.step, self.samples, global_batch_size))
        return Progress(self.step + 1, self.samples + global_batch_size, batches)

    def samples_at(self, step: int, to_come: BatchSizes) -> int:
        """Samples consumed by the first `step` steps; `to_come` are the sizes of steps to come."""
        if step >= self.step:
            return to_come.after(self.samples, step - self.step)
        for first_step, samples, size in reversed(self.batches):
            if step >= first_step:
                return samples + (step - first_step) * size
        whole_steps, whole_samples = self.batches[0][:2] if self.batches else (self.step, self.samples)
        return whole_samples * step // whole_steps
