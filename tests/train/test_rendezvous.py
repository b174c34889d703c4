"""Ranks meet at a store that only they can reach, and all of them end where one cannot work."""

import socket
import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from megatrain.base.errors import MegatrainError, PreflightError
from megatrain.train.rendezvous import agree, open_store

SECONDS = timedelta(seconds=20)


def on_ranks(problems, seconds=20):
    """What `agree` raises on each rank, with these problems; the ranks are threads."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=seconds))
    raised = [None] * len(problems)

    def one(rank):
        try:
            agree(store, len(problems), rank=rank, problem=problems[rank])
        except MegatrainError as error:
            raised[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_all_continue_where_none_has_a_problem():
    assert on_ranks([None] * 4) == [None] * 4


@pytest.mark.parametrize("bad", [(0,), (3,), (1, 2)])
def test_one_bad_node_ends_all_ranks_with_its_name(bad):
    raised = on_ranks([f"node{rank // 2}: no GPU" if rank in bad else None for rank in range(4)])
    assert all(isinstance(error, PreflightError) for error in raised)
    lines = {frozenset(str(error).splitlines()) for error in raised}
    assert lines == {frozenset(f"node{rank // 2}: no GPU" for rank in bad)}


def test_a_rank_that_never_comes_is_one_line(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.5))
    with pytest.raises(MegatrainError, match="cannot meet") as caught:
        agree(store, 2, rank=0, problem=None)
    assert "\n" not in str(caught.value)


def test_the_store_listens_on_loopback_only(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.delenv("MEGATRAIN_STORE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    store = open_store(0, 1, SECONDS)
    store.set("a", "b")
    with socket.socket() as other:
        other.bind(("127.0.0.2", port))  # taken, if the store listened on all addresses
    assert store.get("a") == b"b"


def test_a_port_that_is_in_use_is_one_line(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as used:
        monkeypatch.delenv("MEGATRAIN_STORE", raising=False)
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(used.getsockname()[1]))
        with pytest.raises(MegatrainError, match=r"cannot meet at 127.0.0.1:\d+ .*Address already in use"):
            open_store(0, 1, SECONDS)


def test_the_launchers_socket_becomes_the_store(monkeypatch):
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(listener.getsockname()[1]))
    monkeypatch.setenv("MEGATRAIN_STORE", str(listener.detach()))
    opened = {}
    first = threading.Thread(target=lambda: opened.update(first=open_store(0, 2, SECONDS)))
    first.start()
    # the second rank's own variable
    store = dist.TCPStore("127.0.0.1", int(__import__("os").environ["MASTER_PORT"]), 2, is_master=False)
    first.join()
    store.set("a", "b")
    assert opened["first"].get("a") == b"b"
