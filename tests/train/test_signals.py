"""In processes of their own: a handler is a fact of a whole process."""

import subprocess
import sys

import pytest

# One gloo rank; what it is sent, it sends itself, and `agreed` is asked where "?" stands.
PROGRAM = """
import signal, sys
import torch.distributed as dist
from megatrain.train import process
from megatrain.train.signals import StopRequest

def work():
    stop = StopRequest()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for word in sys.argv[1:]:
        if word == "?":
            print(stop.agreed(dist.group.WORLD), flush=True)
        else:
            signal.raise_signal(getattr(signal, word))  # to this very thread: os.kill may choose another
    print("end", flush=True)

process.run(work)
"""


def answers(*words: str) -> tuple[list[str], int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=60)
    return done.stdout.split(), done.returncode


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR2", "SIGCONT"])
def test_a_stopping_signal_is_remembered(name) -> None:
    assert answers("?", name, "?", "?") == (["None", name, name, "end"], 0)


def test_the_first_signal_is_the_reason() -> None:
    """Slurm's announcement, SIGTERM some seconds later, SIGCONT between them: one reason."""
    assert answers("SIGUSR2", "SIGCONT", "SIGTERM", "SIGTERM", "?") == (["SIGUSR2", "end"], 0)


@pytest.mark.parametrize("words", [("SIGINT", "?", "SIGINT", "?"), ("SIGTERM", "?", "SIGINT", "SIGINT", "?")])
def test_a_second_interrupt_ends_at_once(words: tuple[str, ...]) -> None:
    assert answers(*words) == ([words[0]], 130)
