"""Signals that ask a run to save and stop, agreed on by all ranks at a step boundary."""

import signal
from types import FrameType

import torch
import torch.distributed as dist

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGCONT)  # CONT announces Slurm's preemption


class StopRequest:
    """Remembers the first stopping signal. Installing it replaces the handlers of STOPPING.

    A second SIGINT ends the process at once, for a person who does not want to wait for the checkpoint.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._interrupts = 0
        for number in STOPPING:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self._signal = self._signal or number

    def agreed(self, group: dist.ProcessGroup) -> str | None:
        """The name of a signal that any rank has received; the same answer on every rank. Collective.

        A signal reaches ranks at different times; without agreement one would save while another trains on.
        """
        flag = torch.tensor([self._signal], dtype=torch.int32)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=group)
        return signal.Signals(int(flag)).name if flag else None
