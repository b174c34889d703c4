"""How ranks meet before they have a process group: one store, and one decision whether all of them can go on."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from megatrain.base.errors import PreflightError, RendezvousError

_LOOPBACK = {"127.0.0.1": socket.AF_INET, "localhost": socket.AF_INET, "::1": socket.AF_INET6}
STORE_VARIABLE = "MEGATRAIN_STORE"  # from the launcher, where all ranks are on one machine
_MOST_PROBLEMS = 16  # that are told
_LEAVE = timedelta(seconds=20)  # rank 0, whose process is the store, stays until the others have read why all end


def open_store(rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The store of all ranks, at MASTER_ADDR and MASTER_PORT; on one machine at a socket that only it can reach.

    Raises:
        RendezvousError: the others cannot be met there in time.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    given = os.environ.get(STORE_VARIABLE)
    elastic = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's agent holds the store
    with explained():
        if elastic or (given is None and address not in _LOOPBACK):
            store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
        elif rank == 0:
            listener = (
                socket.socket(fileno=int(given))
                if given
                else socket.create_server((address, port), family=_LOOPBACK[address], backlog=1024)
            )
            port = listener.getsockname()[1]
            store = dist.TCPStore(
                address, port, world_size, is_master=True, timeout=timeout, master_listen_fd=listener.detach()
            )
        else:
            store = dist.TCPStore(address, port, world_size, is_master=False, timeout=timeout)
    store.set_timeout(timeout)
    return store


def agree(store: dist.Store, world_size: int, *, rank: int, problem: str | None) -> None:
    """Wait for all ranks; end all of them where any has a problem. Collective.

    Args:
        problem: that keeps this rank from working, naming its host.

    Raises:
        PreflightError: on every rank the same: the problems, each once.
        RendezvousError: not all ranks came.
    """
    store = dist.PrefixStore("start", store)
    with explained():
        if problem is not None:
            store.set(f"problem/{store.add('problems', 1)}", problem)
        if store.add("arrived", 1) == world_size:
            store.set("all arrived", "")
        store.wait(["all arrived"])
        found = min(store.add("problems", 0), _MOST_PROBLEMS)
        told = dict.fromkeys(store.get(f"problem/{number + 1}").decode() for number in range(found))
        if not told:
            return
        if store.add("read", 1) == world_size:
            store.set("all read", "")
    if rank == 0:
        with suppress(dist.DistError):
            store.wait(["all read"], _LEAVE)
    raise PreflightError("\n".join(told))


@contextmanager
def explained() -> Iterator[None]:
    """torch's own errors of a store or a network, as one line."""
    try:
        yield
    except (dist.DistError, OSError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RendezvousError(
            f"the ranks cannot meet at {where} (MASTER_ADDR, MASTER_PORT): {first}. "
            "Is the port free, and open between the nodes; and do all ranks run?"
        ) from None
