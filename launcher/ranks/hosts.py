"""Ranks on several machines by ssh: one launcher on each, told of signals through its standard input.

this machine ── ssh ──► launcher.ranks.hosts on each host ──► its ranks
     signals ─ lines ─► standard input                  an end of it (this machine died) ends them
"""

import argparse
import contextlib
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

from launcher.ranks.local import FORWARDED, Place, RankGroup, forwarding, run_ranks
from megatrain.errors import ConfigError, ExitCode
from megatrain.run.claim import Claim
from megatrain.run_dir import RunDir

SSH = "ssh -o BatchMode=yes -o ConnectTimeout=20"  # MEGATRAIN_SSH replaces it
_HOST = re.compile(r"^(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9._-]*$")
_PASSED_ON = re.compile(r"^(NCCL_|GLOO_|OMP_NUM_THREADS$|CUDA_|HF_|TORCH|PYTORCH_|DS_ACCELERATOR$)")
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
    address, port = hosts[0].name.rpartition("@")[2], 20_000 + os.getpid() % 10_000
    commands = []
    for index in range(len(hosts)):
        arguments = [str(run.path.absolute()), str(ranks), module, resume, device, address, str(port)]
        arguments += [str(index * ranks), str(len(hosts) * ranks), str(claim or "")]
        commands.append(_remote_command(arguments))
    group = _Remotes(hosts)
    with forwarding(group.forward):
        return group.go(commands)


class _Remotes:
    """The ssh processes, one a host."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        self.processes: list[subprocess.Popen[bytes]] = []
        self.interrupts = 0

    def go(self, commands: list[str]) -> int:
        ssh = shlex.split(os.environ.get("MEGATRAIN_SSH", SSH))
        try:
            for host, command in zip(self.hosts, commands, strict=True):
                line = [*ssh, host.name, command]
                self.processes.append(subprocess.Popen(line, stdin=subprocess.PIPE, start_new_session=True))
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
        print(f"error: {host.name}: {why}; the others are ended", file=sys.stderr)
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


def _remote_command(arguments: list[str]) -> str:
    """One line for the other side's shell, every word quoted."""
    passed = {name: value for name, value in os.environ.items() if _PASSED_ON.match(name)}
    path = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = [f"{name}={value}" for name, value in {**passed, "PYTHONPATH": os.pathsep.join(path)}.items()]
    words = ["env", *settings, sys.executable, "-m", "launcher.ranks.hosts", *arguments]
    return f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(words)}"


def _host(given: str, name: str, ranks: str, default: int | None) -> Host:
    if not _HOST.match(name) or (ranks and not (ranks.isdecimal() and int(ranks) > 0)):
        raise ConfigError(f"hosts: {given.strip()!r}: must be a name that ssh takes, and a number of ranks")
    return Host(name, int(ranks) if ranks else default)


def _checked(where: str, hosts: list[Host]) -> list[Host]:
    names = [host.name for host in hosts]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{where}: {', '.join(names) or 'no host'}: must name hosts, each once")
    return hosts


def main() -> int:
    """The launcher on one of the hosts."""
    parser = argparse.ArgumentParser(prog="launcher.ranks.hosts", description=__doc__)
    for name in (
        "run",
        "ranks",
        "module",
        "resume",
        "device",
        "address",
        "port",
        "first_rank",
        "world_size",
        "attempt",
    ):
        parser.add_argument(name)
    given = parser.parse_args()
    place = Place(
        first_rank=int(given.first_rank), world_size=int(given.world_size), address=given.address, port=int(given.port)
    )

    def listen(group: RankGroup) -> None:
        names = {number.name: number for number in FORWARDED}
        for line in sys.stdin:
            if number := names.get(line.strip()):
                group.forward(number)
        group.kill()  # the launcher that started us is gone

    return run_ranks(
        RunDir(given.run),
        int(given.ranks),
        module=given.module,
        resume=given.resume,
        device=given.device,
        place=place,
        claim=Claim.parse(given.attempt),
        started=lambda group: threading.Thread(target=listen, args=(group,), daemon=True).start(),
    )


if __name__ == "__main__":
    sys.exit(main())
