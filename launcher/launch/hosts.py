"""The hosts that ranks run on, as --hosts and DeepSpeed's hostfile name them."""

import re
from dataclasses import dataclass
from pathlib import Path

from megatrain.base.errors import ConfigError

_HOST = re.compile(r"(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9._-]*")
_RANKS = re.compile(r"[0-9]{1,4}")
MOST_RANKS = 1024  # on a host


@dataclass(frozen=True, slots=True)
class Host:
    name: str  # as ssh takes it
    ranks: int | None  # None: the cluster's gpus_per_node


def parse_hosts(text: str, ranks: int | None = None) -> list[Host]:
    """`a,b:4`: names with, after a colon, their ranks. Raises ConfigError."""
    return _checked("--hosts", [_host(item, *item.strip().partition(":")[::2], ranks) for item in text.split(",")])


def read_hostfile(path: Path) -> list[Host]:
    """DeepSpeed's hostfile: `NAME slots=N` per line, # begins a comment. Raises ConfigError."""
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


def _host(given: str, name: str, ranks: str, default: int | None) -> Host:
    if not _HOST.fullmatch(name) or (ranks and not (_RANKS.fullmatch(ranks) and 0 < int(ranks) <= MOST_RANKS)):
        raise ConfigError(f"hosts: {given.strip()!r}: must be a name that ssh takes, and a number of ranks")
    return Host(name, int(ranks) if ranks else default)


def _checked(where: str, hosts: list[Host]) -> list[Host]:
    names = [host.name for host in hosts]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{where}: {', '.join(names) or 'no host'}: must name hosts, each once")
    return hosts
