"""All ranks stop after one and the same step, whichever of them a signal reaches, and when."""

import random
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed


def stopped(received: dict[int, dict[int, str]], ahead: int, slow: int) -> tuple[int, str | None]:
    """After which step this rank stops, and why. Its steps are reductions that it waits for when it is `ahead` of them.

    Args:
        received: rank -> step -> a signal that reaches it within that step.
        slow: this rank sleeps in each step.
    """
    from megatrain.train.signals import STOPPING, StopRequest

    rank, handlers = dist.get_rank(), {number: signal.getsignal(number) for number in STOPPING}
    chance = random.Random(rank)
    try:
        stop = StopRequest()
        stop.share(dist.PrefixStore("test", dist.distributed_c10d._get_default_store()))
        running: list[dist.Work] = []
        for step in range(1, 30):
            time.sleep(0.01 if rank == slow else chance.random() / 1000)
            running.append(dist.all_reduce(torch.ones(1), async_op=True))
            if name := received.get(rank, {}).get(step):
                signal.raise_signal(signal.Signals[name])
            while len(running) > ahead:
                running.pop(0).wait()
            if reason := stop.agreed(step):
                return step, reason
        return step, None
    finally:
        dist.barrier()
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("ahead", [0, 1], ids=["as a CPU", "as a GPU, whose host is a step ahead"])
@pytest.mark.parametrize("slow", [0, 2])
@pytest.mark.parametrize(
    "received",
    [
        {0: {1: "SIGTERM"}},
        {2: {7: "SIGUSR2"}},
        {0: {5: "SIGTERM"}, 1: {5: "SIGUSR2"}, 2: {5: "SIGINT"}},
        {0: {6: "SIGTERM"}, 1: {5: "SIGUSR2"}},
        {1: {4: "SIGTERM", 5: "SIGCONT"}, 2: {6: "SIGUSR2"}},
        {},
    ],
    ids=str,
)
def test_all_stop_after_the_same_step(ranks: RankPool, received, slow: int, ahead: int) -> None:
    answers = ranks.run(3, stopped, received, ahead, slow)
    assert all(answer == answers[0] for answer in answers)
    step, reason = answers[0]
    if not received:
        assert (step, reason) == (29, None)
        return
    first = min(step for signals in received.values() for step in signals)
    assert first + 2 <= step <= first + 3, "two steps later; a rank that is ahead may have spoken first"
    assert reason in {name for signals in received.values() for name in signals.values()}
