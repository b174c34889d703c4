"""Ranks on several machines by ssh: one launcher on each, told of signals through its standard input.

this machine ── ssh ──► launcher.launch.ssh on each host ──► its ranks
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launcher.installation import python_path
from launcher.launch.environment import NodeRanks
from launcher.launch.hosts import Host
from launcher.launch.local import RankGroup, run_ranks
from launcher.launch.processes import FORWARDED, common_code, first_failure, forwarding, wait_until_ended
from megatrain.base.credentials import credentials_in, is_secret_name
from megatrain.base.errors import ExitCode, MegatrainError, PreflightError
from megatrain.base.files import parse_json, parse_model
from megatrain.base.terminal import accept_any_text, complain
from megatrain.run.claim import Claim
from megatrain.run.directory import RunDir

SSH = "ssh -o BatchMode=yes -o ConnectTimeout=20"  # MEGATRAIN_SSH replaces it
# Settings of libraries go with the ranks; what holds a password or a token stays here.
_PASSED_ON = re.compile(r"(NCCL_|GLOO_|CUDA_|HF_|TORCH|TRITON_|PYTORCH_).*|OMP_NUM_THREADS")
_GRACE_SECONDS = 20.0  # between one host's failure and the end of the others' launchers


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the launcher on a host is to start; the arguments of `run_ranks`."""

    run: str
    ranks: int
    module: str
    resume: str
    device: str
    first_rank: int = 0
    world_size: int
    address: str
    port: int
    claim: str
    environment: dict[str, str]


def run_hosts(
    run: RunDir,
    hosts: list[Host],
    ranks: int,
    *,
    module: str = "megatrain.train",
    resume: str,
    device: str,
    claim: Claim | None = None,
) -> int:
    """Run `ranks` ranks on each host; the exit code of the whole, as `local.run_ranks` has it.

    Every host must see the run's folder and this Python under the same paths. No rank outlives the call.
    """
    order = Order(
        run=str(run.path.absolute()),
        ranks=ranks,
        module=module,
        resume=resume,
        device=device,
        world_size=len(hosts) * ranks,
        address=hosts[0].name.rpartition("@")[2],
        port=20_000 + os.getpid() % 10_000,
        claim=str(claim or ""),
        environment=_passed_on(),
    )
    processes: list[subprocess.Popen[bytes]] = []
    interrupts: list[int] = []

    def forward(number: int) -> None:
        interrupts.extend([number] if number == signal.SIGINT else [])
        for process in processes:
            _tell(process, signal.Signals(number).name)

    with forwarding(forward):
        try:
            for index, host in enumerate(hosts):
                processes.append(_start(host, replace(order, first_rank=index * ranks)))
            failed = first_failure(processes)
            code = common_code(processes) if failed is None else processes[failed].returncode
        finally:
            _hang_up(processes)
    if failed is not None and len(interrupts) > 1:
        return 128 + signal.SIGINT
    return code if failed is None else _explain(hosts[failed], code)


def _start(host: Host, order: Order) -> subprocess.Popen[bytes]:
    """A launcher on a host. Its order goes to its standard input, which nobody else can read."""
    ssh = shlex.split(os.environ.get("MEGATRAIN_SSH", SSH))
    process = subprocess.Popen([*ssh, host.name, _remote_command()], stdin=subprocess.PIPE, start_new_session=True)
    _tell(process, json.dumps(asdict(order)))
    return process


def _explain(host: Host, code: int) -> int:
    why = "ssh could not reach it" if code == 255 else f"its ranks exited with {code}"
    complain(f"{host.name}: {why}; the others are ended")
    return ExitCode.PREFLIGHT if code == 255 else code if code > 0 else ExitCode.CRASH


def _hang_up(processes: list[subprocess.Popen[bytes]]) -> None:
    """Close every launcher's standard input, on which it ends its ranks; then end what is left."""
    for process in processes:
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()
    wait_until_ended(processes, _GRACE_SECONDS)
    for process in processes:
        process.kill()
        process.wait()


def _tell(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # it has ended; first_failure sees that
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()


def _remote_command() -> str:
    """One line for the other side's shell, every word quoted. Whoever is on either machine can read it."""
    words = ["env", f"PYTHONPATH={python_path()}", sys.executable, "-P", "-m", "launcher.launch.ssh"]
    return f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(words)}"


def _passed_on() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if _PASSED_ON.fullmatch(name) and not is_secret_name(name) and credentials_in(value) is None
    }


def main() -> int:
    """The launcher on one of the hosts: told on its standard input what to start, and then of signals."""
    accept_any_text()
    try:
        line = parse_json(sys.stdin.readline(), "standard input", PreflightError)
        order = parse_model(Order, line, "standard input", PreflightError)
        os.environ.update(order.environment)
        return run_ranks(
            RunDir(order.run),
            order.ranks,
            module=order.module,
            resume=order.resume,
            device=order.device,
            node_ranks=NodeRanks(order.first_rank, order.world_size, order.address, order.port),
            claim=Claim.parse(order.claim) if order.claim else None,
            started=lambda group: threading.Thread(target=_listen, args=(group,), daemon=True).start(),
        )
    except MegatrainError as error:
        complain(error)
        return error.exit_code


def _listen(group: RankGroup) -> None:
    names = {number.name: number for number in FORWARDED}
    for line in sys.stdin:
        if number := names.get(line.strip()):
            group.forward(number)
    group.kill()  # the launcher that started us is gone


if __name__ == "__main__":
    sys.exit(main())
