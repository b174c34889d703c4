"""What each rank on this machine finds in its environment, and the socket at which the ranks of one machine meet.

A variable that the user has set stays as it is, but for those that say who a rank is and where it runs.
"""

import os
import socket
from typing import NamedTuple

from launcher.installation import python_path
from megatrain.base.errors import PreflightError
from megatrain.run.claim import VARIABLE as CLAIM_VARIABLE
from megatrain.run.claim import Claim
from megatrain.run.directory import RunDir

STORE_VARIABLE = "MEGATRAIN_STORE"  # of ranks on one machine: the listening socket (rank 0), or "client"
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_WAITING = 1024  # connections that the kernel holds until rank 0 accepts them


class NodeRanks(NamedTuple):
    """Where this machine's ranks stand among those of all machines, and where rank 0 is met."""

    first_rank: int
    world_size: int
    address: str
    port: int
    listener: socket.socket | None = None  # on loopback, where all ranks are on this machine


def alone(ranks: int) -> NodeRanks:
    """Ranks that are all on this machine: nobody outside of it can reach the store where they meet.

    Raises:
        PreflightError: there is no loopback interface.
    """
    listener = _listen_on_loopback()
    address, port = listener.getsockname()[:2]
    return NodeRanks(0, ranks, address, port, listener)


def rank_command(python: str, module: str, run: RunDir, resume: str) -> list[str]:
    """The command of a rank; -P: a module in the working directory never stands in for an installed one."""
    return [python, "-P", "-m", module, str(run.path.absolute()), "--resume", resume]


def rank_environment(index: int, count: int, node_ranks: NodeRanks, device: str, claim: Claim | None) -> dict[str, str]:
    """What rank `index` of this machine's `count` finds: who it is, and threads that share the cores."""
    cores = str(max(1, len(os.sched_getaffinity(0)) // count))
    settings = {"OMP_NUM_THREADS": cores, "TORCHINDUCTOR_COMPILE_THREADS": cores, "PYTHONUNBUFFERED": "1"}
    if device != "cpu" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        settings["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"  # less memory lost between blocks
    if node_ranks.listener is not None:
        settings |= _on_loopback()
    settings |= os.environ
    settings |= {
        "PYTHONPATH": python_path(),
        "PYTHONUTF8": "1",  # file names mean the same in every locale
        "DS_ACCELERATOR": "cpu" if device == "cpu" else "cuda",
        "RANK": str(node_ranks.first_rank + index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(node_ranks.world_size),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": node_ranks.address,
        "MASTER_PORT": str(node_ranks.port),
    }
    settings.pop(STORE_VARIABLE, None)
    if device == "cpu":
        settings["CUDA_VISIBLE_DEVICES"] = ""
    if node_ranks.listener is not None:
        settings[STORE_VARIABLE] = str(node_ranks.listener.fileno()) if index == 0 else "client"
    if claim is not None:
        settings[CLAIM_VARIABLE] = str(claim)
    return settings


def _listen_on_loopback() -> socket.socket:
    reason: OSError | None = None
    for family, address in _LOOPBACK:
        try:
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.bind((address, 0))
            listener.listen(_WAITING)
        except OSError as error:
            reason = error
        else:
            return listener
    raise PreflightError(
        f"network: neither 127.0.0.1 nor ::1 can be listened on ({reason}): ranks meet there. Try `ip link set lo up`."
    )


def _on_loopback() -> dict[str, str]:
    """Gloo and NCCL listen there, too, and need no name of this host that resolves."""
    names = [name for _, name in socket.if_nameindex()]
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    return {} if loopback is None else {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
