"""Where the ranks of `train` and `finetune` run: on this machine, on hosts by ssh, or as one of many launchers."""

import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from launcher.launch.environment import NodeRanks
from launcher.launch.hosts import Host, parse_hosts, read_hostfile
from launcher.launch.local import run_ranks
from launcher.launch.ssh import run_hosts
from launcher.planning.plan import resolve
from launcher.planning.plan_result import PlanResult
from launcher.runs.claim import attempted
from launcher.runs.owner import busy_with
from launcher.runs.prepare import prepare_run, run_folder
from megatrain.base.errors import ConfigError, PreflightError
from megatrain.base.terminal import copyable
from megatrain.config import Config
from megatrain.config.file import dump_config
from megatrain.run.attempts import read_attempts
from megatrain.run.claim import Claim
from megatrain.run.directory import RunDir

_RENDEZVOUS = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")  # as torchrun's users set them on each machine
_RANGES = {"NNODES": (1, 100_000), "NODE_RANK": (0, 99_999), "MASTER_PORT": (1, 65_535)}
_WAIT_SECONDS = 600.0  # for the launcher of node 0 to write the run's folder


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchTarget:
    """What the command line and the environment say; at most one of `hosts` and `node` is given."""

    ranks: int | None = None  # on this machine
    hosts: list[Host] | None = None
    node: int | None = None  # this launcher is one of several
    nodes: int = 1

    @classmethod
    def from_options(cls, nproc: int | None, hosts: str | None, hostfile: Path | None) -> "LaunchTarget":
        """Raises ConfigError when they contradict each other, or are not what they should be."""
        if hosts is not None and hostfile is not None:
            raise ConfigError("--hosts, --hostfile: give one of them")
        listed = parse_hosts(hosts, nproc) if hosts is not None else None
        if hostfile is not None:
            listed = read_hostfile(hostfile)
        if listed is not None or os.environ.get("NNODES", "1") == "1":
            return cls(ranks=nproc, hosts=listed)
        if missing := [name for name in _RENDEZVOUS if not os.environ.get(name)]:
            raise ConfigError(f"environment: NNODES is set, but not {', '.join(missing)}: set all four, or none")
        number = {name: os.environ[name] for name in ("NNODES", "NODE_RANK", "MASTER_PORT")}
        for name, value in number.items():
            least, most = _RANGES[name]
            if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
                shown = value if len(value) < 20 else f"{value[:20]}…"
                raise ConfigError(f"environment: {name}: {shown!r}: must be a whole number from {least} to {most:,}")
        if int(number["NODE_RANK"]) >= int(number["NNODES"]):
            raise ConfigError(f"environment: NODE_RANK: {number['NODE_RANK']}: must be below NNODES")
        return cls(ranks=nproc, node=int(number["NODE_RANK"]), nodes=int(number["NNODES"]))

    def apply_to(self, config: Config) -> tuple[Config, int | None]:
        """The configuration for these machines, and its ranks where they are not the cluster's.

        Raises:
            ConfigError, PreflightError: this command cannot reach the cluster's nodes.
        """
        cluster = config.cluster
        if self.hosts is not None:
            each = {host.ranks or cluster.gpus_per_node for host in self.hosts}
            if len(each) > 1:
                raise ConfigError(f"--hosts: the hosts have {sorted(each)} ranks: each must have as many as the others")
            update = {"nodes": len(self.hosts), "gpus_per_node": each.pop()}
            return config.model_copy(update={"cluster": cluster.model_copy(update=update)}), None
        if self.node is not None:
            update = {"nodes": self.nodes, "gpus_per_node": self.ranks or cluster.gpus_per_node}
            return config.model_copy(update={"cluster": cluster.model_copy(update=update)}), None
        if self.ranks is None and cluster.nodes > 1 and cluster.hardware != "cpu":
            raise PreflightError(
                f"cluster.nodes: {cluster.nodes}: this command starts ranks on one machine. Use `megatrain submit`, "
                "name the others with --hosts, or give --nproc N to run on this machine's GPUs."
            )
        return config, self.ranks


def start(config: Config, report: PlanResult, target: LaunchTarget, *, resume: str) -> int:
    """Write the run's folder and run its ranks to their end; the exit code of the whole."""
    device, ranks = report.hardware.device, report.chosen.world_size
    if target.node:
        run = run_folder(config)
        _wait_for_folder(run.config, dump_config(resolve(config, report.chosen)))
        claim = _wait_for_claim(run)
        return run_ranks(
            run,
            ranks // target.nodes,
            resume=resume,
            device=device,
            node_ranks=_node_ranks(target, ranks),
            claim=claim,
        )
    folder = run_folder(config)
    if busy := busy_with(folder):  # before a file of the run that it has is changed
        raise PreflightError(f"{folder}: {busy} already holds this run. Stop it: megatrain stop {copyable(folder)}")
    node_ranks = _node_ranks(target, ranks) if target.node == 0 else None
    run = prepare_run(config, report.chosen, resume=resume)
    if target.hosts is not None:
        hosts = target.hosts
        names = [host.name for host in hosts]

        def go(claim: Claim) -> int:
            return run_hosts(run, hosts, ranks // len(hosts), resume=resume, device=device, claim=claim)

        return attempted(run, ranks, names, go, resume=resume)
    here = ranks // target.nodes
    return attempted(
        run,
        ranks,
        [socket.gethostname()],
        lambda claim: run_ranks(run, here, resume=resume, device=device, node_ranks=node_ranks, claim=claim),
        resume=resume,
    )


def _node_ranks(target: LaunchTarget, ranks: int) -> NodeRanks:
    assert target.node is not None, "one of several launchers"
    each = ranks // target.nodes
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if target.node == 0:
        _check_port(port)
    return NodeRanks(first_rank=target.node * each, world_size=ranks, address=address, port=port)


def _check_port(port: int) -> None:
    """Rank 0 is going to listen there."""
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise PreflightError(
            f"environment: MASTER_PORT: {port}: this machine cannot listen there: {error.strerror}. Give another one, "
            "the same on all machines."
        ) from None


def _wait_for_folder(file: Path, expected: str) -> None:
    """Until node 0 has written what this launcher would write: all see one folder, and the same file."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not (file.is_file() and file.read_text(encoding="utf-8") == expected):
        if time.monotonic() > deadline:
            raise PreflightError(
                f"{file}: node 0 has not written this configuration in {_WAIT_SECONDS:.0f} s. "
                "All nodes must be given the same command and see the same run.directory."
            )
        time.sleep(0.5)


def _wait_for_claim(run: RunDir) -> Claim:
    """Until node 0 has claimed the run: these ranks are of the same start."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not ((attempts := read_attempts(run)) and attempts[-1].ended is None):
        if time.monotonic() > deadline:
            raise PreflightError(f"{run.attempts}: node 0 has not started this run in {_WAIT_SECONDS:.0f} s.")
        time.sleep(0.5)
    return Claim(len(attempts) - 1, attempts[-1].token)
