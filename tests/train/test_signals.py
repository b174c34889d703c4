"""In processes of their own: a handler is a fact of a whole process."""

import subprocess
import sys

import pytest
import torch.distributed as dist

from megatrain.base.errors import MegatrainError
from megatrain.train import signals

# A lone rank; what it is sent, it sends itself, and it ends a step where "?" stands.
PROGRAM = """
import signal, sys
import torch.distributed as dist
from megatrain.train import rank
from megatrain.train.signals import StopRequest

def work():
    stop, step = StopRequest(), 0
    stop.share(dist.HashStore())
    for word in sys.argv[1:]:
        if word == "?":
            step += 1
            print(stop.agreed(step), flush=True)
        else:
            signal.raise_signal(getattr(signal, word))  # to this very thread: os.kill may choose another
    print("end", flush=True)

rank.run(work)
"""


def answers(*words: str) -> tuple[list[str], int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=60)
    return done.stdout.split(), done.returncode


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR2", "SIGCONT"])
def test_a_stopping_signal_is_remembered(name) -> None:
    """Until two steps after the one that it came in: others may have begun the first of them."""
    assert answers("?", name, "?", "?", "?", "?") == (["None", "None", "None", name, name, "end"], 0)


def test_the_first_signal_is_the_reason() -> None:
    """Slurm's announcement, SIGTERM some seconds later, SIGCONT between them: one reason."""
    words = ("SIGUSR2", "SIGCONT", "SIGTERM", "?", "SIGTERM", "?", "?")
    assert answers(*words) == (["None", "None", "SIGUSR2", "end"], 0)


@pytest.mark.parametrize("words", [("SIGINT", "?", "SIGINT"), ("SIGTERM", "?", "SIGINT", "SIGINT")])
def test_a_second_interrupt_ends_at_once(words: tuple[str, ...]) -> None:
    assert answers(*words) == (["None"] * words.count("?"), 130)


def test_a_store_that_is_gone_is_one_line(monkeypatch) -> None:
    """Rank 0 holds it, and has ended."""
    monkeypatch.setattr(signals.signal, "signal", lambda number, handler: None)
    server = dist.TCPStore("127.0.0.1", 0, is_master=True)
    stop = signals.StopRequest()
    stop.share(dist.TCPStore("127.0.0.1", server.port, is_master=False))
    assert stop.agreed(6) is None
    del server
    with pytest.raises(MegatrainError, match=r"^step 7: the store of the ranks, .* is gone: [^\n]*$"):
        stop.agreed(7)
