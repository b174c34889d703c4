"""Ranks on several machines by ssh: one launcher on each, told of signals through its standard input.

this machine ── ssh ──► launcher.launch.hosts on each host ──► its ranks
     signals ─ lines ─► standard input                  an end of it (this machine died) ends them
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.files import python_path
from launcher.launch.environment import NodeRanks
from launcher.launch.local import FORWARDED, RankGroup, forwarding, run_ranks
from megatrain.base.credentials import credentials_in, is_secret_name
from megatrain.base.errors import ConfigError, ExitCode, MegatrainError, PreflightError
from megatrain.base.files import parse_json
from megatrain.base.terminal import accept_any_text, complain
from megatrain.run.claim import Claim
from megatrain.run.directory import RunDir

SSH = "ssh -o BatchMode=yes -o ConnectTimeout=20"  # MEGATRAIN_SSH replaces it
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9._-]*")
_RANKS = re.compile(r"[0-9]{1,4}")
# Settings of libraries go with the ranks; what holds a password or a token stays here.
_PASSED_ON = re.compile(r"(NCCL_|GLOO_|CUDA_|HF_|TORCH|TRITON_|PYTORCH_).*|OMP_NUM_THREADS")
MOST_RANKS = 1024  # on a host
_GRACE_SECONDS = 20.0  # between one host's failure and the end of the others' launchers
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Host:
    name: str  # as ssh takes it
    ranks: int | None  # None: the cluster's gpus_per_node


def parse_hosts(text: str, ranks: int | None = None) -> list[Host]:
    """`a,b:4`: names with, after a colon, their ranks. Raises ConfigError."""
    return _checked("--hosts", [_host(item, *item.strip().partition(":")[::2], ranks) for item in text.split(",")])


def read_hostfile(path: Path) -> list[Host]:
    """DeepSpeed's hostfile: `NAME slots=N` a line, # begins a comment. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--hostfile: {path}: cannot be read: {error}") from None
    hosts = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = words[1].removeprefix("slots=") if len(words) == 2 and words[1].startswith("slots=") else ""
        if len(words) > 1 and not slots:
            raise ConfigError(f"--hostfile: {path}:{number}: {line.strip()!r}: must be `NAME slots=N`")
        hosts.append(_host(line, words[0], slots, None))
    return _checked(f"--hostfile: {path}", hosts)


def run_hosts(
    run: RunDir, hosts: list[Host], ranks: int, *, module: str, resume: str, device: str, claim: Claim | None = None
) -> int:
    """Run `ranks` ranks on each host; the exit code of the whole, as `local.run_ranks` has it.

    Every host must see the run's folder and this Python under the same paths. No rank outlives the call.
    """
    orders = [
        {
            "run": str(run.path.absolute()),
            "ranks": ranks,
            "module": module,
            "resume": resume,
            "device": device,
            "address": hosts[0].name.rpartition("@")[2],
            "port": 20_000 + os.getpid() % 10_000,
            "first_rank": index * ranks,
            "world_size": len(hosts) * ranks,
            "claim": str(claim or ""),
            "environment": _passed_on(),
        }
        for index in range(len(hosts))
    ]
    group = _Remotes(hosts)
    with forwarding(group.forward):
        return group.go([json.dumps(order) for order in orders])


class _Remotes:
    """The ssh processes, one per host."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        self.processes: list[subprocess.Popen[bytes]] = []
        self.interrupts = 0

    def go(self, orders: list[str]) -> int:
        """Start a launcher on each host, and tell it its order: on its standard input, which nobody else can read."""
        ssh = shlex.split(os.environ.get("MEGATRAIN_SSH", SSH))
        try:
            for host, order in zip(self.hosts, orders, strict=True):
                line = [*ssh, host.name, _remote_command()]
                self.processes.append(subprocess.Popen(line, stdin=subprocess.PIPE, start_new_session=True))
                self._tell(self.processes[-1], f"{order}\n")
            return self._wait()
        finally:
            self._hang_up()

    def forward(self, number: int) -> None:
        self.interrupts += number == signal.SIGINT
        for process in self.processes:
            self._tell(process, f"{signal.Signals(number).name}\n")

    def _wait(self) -> int:
        while True:
            codes = [process.poll() for process in self.processes]
            for host, code in zip(self.hosts, codes, strict=True):
                if code not in (None, ExitCode.DONE, ExitCode.STOPPED):
                    return self._failed(host, code)
            if None not in codes:
                return ExitCode.STOPPED if ExitCode.STOPPED in codes else ExitCode.DONE
            time.sleep(_POLL_SECONDS)

    def _failed(self, host: Host, code: int) -> int:
        if self.interrupts > 1:
            return 128 + signal.SIGINT
        why = "ssh could not reach it" if code == 255 else f"its ranks ended with {code}"
        complain(f"{host.name}: {why}; the others are ended")
        return ExitCode.PREFLIGHT if code == 255 else code if code > 0 else ExitCode.CRASH

    def _hang_up(self) -> None:
        """Close every launcher's standard input, on which it ends its ranks; then end what is left."""
        for process in self.processes:
            if process.stdin and not process.stdin.closed:
                with contextlib.suppress(OSError):
                    process.stdin.close()
        deadline = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(_POLL_SECONDS)
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _tell(self, process: subprocess.Popen[bytes], line: str) -> None:
        with contextlib.suppress(OSError):  # it has ended; _wait sees that
            if process.stdin:
                process.stdin.write(line.encode())
                process.stdin.flush()


def _remote_command() -> str:
    """One line for the other side's shell, every word quoted. Whoever is on either machine can read it."""
    words = ["env", f"PYTHONPATH={python_path()}", sys.executable, "-P", "-m", "launcher.launch.hosts"]
    return f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(words)}"


def _passed_on() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if _PASSED_ON.fullmatch(name) and not is_secret_name(name) and credentials_in(value) is None
    }


def _host(given: str, name: str, ranks: str, default: int | None) -> Host:
    if not _HOST.fullmatch(name) or (ranks and not (_RANKS.fullmatch(ranks) and 0 < int(ranks) <= MOST_RANKS)):
        raise ConfigError(f"hosts: {given.strip()!r}: must be a name that ssh takes, and a number of ranks")
    return Host(name, int(ranks) if ranks else default)


def _checked(where: str, hosts: list[Host]) -> list[Host]:
    names = [host.name for host in hosts]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{where}: {', '.join(names) or 'no host'}: must name hosts, each once")
    return hosts


def main() -> int:
    """The launcher on one of the hosts: told on its standard input what to start, and then of signals."""
    accept_any_text()
    try:
        order: dict[str, Any] = parse_json(sys.stdin.readline(), "standard input", PreflightError)
        os.environ.update(order["environment"])
        return _start(order)
    except MegatrainError as error:
        complain(error)
        return error.exit_code


def _start(order: dict[str, Any]) -> int:
    node_ranks = NodeRanks(order["first_rank"], order["world_size"], order["address"], order["port"])

    def listen(group: RankGroup) -> None:
        names = {number.name: number for number in FORWARDED}
        for line in sys.stdin:
            if number := names.get(line.strip()):
                group.forward(number)
        group.kill()  # the launcher that started us is gone

    return run_ranks(
        RunDir(order["run"]),
        order["ranks"],
        module=order["module"],
        resume=order["resume"],
        device=order["device"],
        node_ranks=node_ranks,
        claim=Claim.parse(order["claim"]) if order["claim"] else None,
        started=lambda group: threading.Thread(target=listen, args=(group,), daemon=True).start(),
    )


if __name__ == "__main__":
    sys.exit(main())
