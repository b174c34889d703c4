"""Signals that ask a run to save and stop, and the step at which all ranks do."""

import signal
from types import FrameType

import torch.distributed as dist

from megatrain.base.errors import MegatrainError

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGCONT)  # CONT announces Slurm's preemption
_KEY = "stop"
_STEPS = 2  # from the step after which a rank tells of its signal to the one after which all ranks stop


class StopRequest:
    """Remembers the first stopping signal. Installing it replaces the handlers of STOPPING.

    A second SIGINT ends the process at once, for a person who does not want to wait for the checkpoint.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._interrupts = 0
        self._store: dist.Store | None = None
        self._agreed: tuple[int, str] | None = None  # the step, and the signal's name
        for number in STOPPING:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # the launcher holds them back until here

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self._signal = self._signal or number

    def share(self, store: dist.Store) -> None:
        """Call before the first `agreed`.

        Args:
            store: of all ranks, new at each start of a run.
        """
        self._store = dist.PrefixStore("signals", store)

    def agreed(self, step: int) -> str | None:
        """The name of a signal that any rank has received, at the step after which all ranks stop for it; else None.

        Called by every rank after each step. Not a collective: a signal reaches ranks at different times, and the first
        to look after that writes into the store that all stop two steps later; every other one reads it in time. For it
        cannot have run two more steps: a step's gradients are reduced over all ranks, and its host is at most a step
        ahead of its device (`run_ahead.RunAhead`).

        Raises:
            MegatrainError: the store is gone.
        """
        assert self._store is not None, "`share` comes first"
        if self._agreed is None:
            try:
                self._agreed = self._read(self._store, step)
            except (dist.DistError, OSError) as error:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
                raise MegatrainError(
                    f"step {step:,}: the store of the ranks, a part of rank 0's process (or of torchrun), is gone: "
                    f"{first}. See why that process ended"
                ) from None
        return self._agreed[1] if self._agreed is not None and step >= self._agreed[0] else None

    def _read(self, store: dist.Store, step: int) -> tuple[int, str] | None:
        if self._signal:
            mine = f"{step + _STEPS} {signal.Signals(self._signal).name}"
            told = store.compare_set(_KEY, "", mine)  # the first one's stays
        elif store.check([_KEY]):
            told = store.get(_KEY)
        else:
            return None
        at, name = told.decode().split()
        return int(at), name
