"""How far the host may be ahead of its device."""

import torch


class RunAhead:
    """Lets the host queue a step while its device still runs the one before, and no more.

    So nothing stalls: the device has a whole step to run when the host goes on. And ranks stay together: see
    `signals.StopRequest`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._last: torch.cuda.Event | None = None

    def step(self) -> None:
        """Call when a step is queued; waits until the step before it has been run."""
        if not self._on_gpu:  # a CPU has run what it was told
            return
        before, self._last = self._last, torch.cuda.Event()
        self._last.record()
        if before is not None:
            before.synchronize()
