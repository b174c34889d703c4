"""A run as a Slurm job script: values of the configuration and a site profile, in the template that people read.

Nothing from a configuration reaches the shell unquoted: values in the script's body are quoted, and values on #SBATCH
lines must be plain words.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from launcher.installation import shipped, source_root
from launcher.planning.hardware import load_hardware
from launcher.planning.plan_result import Plan
from megatrain.base.credentials import credentials_in, is_secret_name
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import copyable
from megatrain.config import Config
from megatrain.run.directory import RunDir

TEMPLATE = "slurm/train.sbatch"
PROFILES = "slurm/profiles"
_PLACEHOLDER = re.compile(r"@\{([a-z_]+)\}")  # so that the shell's own $ and @ stay as they are
_WORD = re.compile(r"[A-Za-z0-9_.,:;/+=%@&|*!()\[\]<>~-]+")

_DIRECTIVE = re.compile(r"#SBATCH --([a-z][a-z-]*)(=[A-Za-z0-9_.,:;/+=%@&|*!()\[\]<>~-]+)?\s*(?:#.*)?")
_SITE_OPTIONS = ("partition", "account", "qos", "cpus-per-task")  # a profile may set them, a configuration has fields

# Options that megatrain sets itself: where to change them instead.
_OWNED = {
    "job-name": "run.name",
    "nodes": "cluster.nodes",
    "ntasks": "cluster",
    "ntasks-per-node": "cluster.gpus_per_node",
    "gpus-per-node": "cluster.gpus_per_node",
    "time": "slurm.time",
    "signal": "slurm.signal_before_limit_seconds",
    "output": "run.directory",
    "open-mode": "",
    "requeue": "",
    "no-requeue": "",
    "chdir": "",
    "partition": "slurm.partition",
    "account": "slurm.account",
    "qos": "slurm.qos",
    "cpus-per-task": "slurm.cpus_per_task",
    "wrap": "",
    "export": "",
    "parsable": "",
}


_ON_CPU = "export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=\n"
_ON_GPU = """export DS_ACCELERATOR=cuda
if [ -z "$PYTORCH_CUDA_ALLOC_CONF" ]; then  # less memory lost between blocks
    export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
fi
"""
_ASSIGNMENT = re.compile(r"\s*(?:export\s+|declare\s+(?:-\S+\s+)*)?([A-Za-z_]\w*)=[\"']?(?![$`\"'\s]|$).*")


class _Profile(NamedTuple):
    options: dict[str, str]  # of its #SBATCH lines; "" for one without a value
    commands: str


def render(
    config: Config, run: RunDir, plan: Plan, *, profile: str | None = None, cores_per_gpu: int | None = None
) -> str:
    """The complete script.

    Args:
        config: resolved.
        profile: a name in slurm/profiles, or the path of a shell file, that is put in before the job's first command.
        cores_per_gpu: of each rank on a GPU, where neither the configuration nor the profile says how many it gets.

    Raises:
        ConfigError: a value cannot stand on an #SBATCH line, an option is megatrain's own, or the profile is not there.
    """
    cluster, slurm = config.cluster, config.slurm
    if plan.world_size != cluster.nodes * cluster.gpus_per_node:
        raise ConfigError("cluster: the plan is for another number of ranks")
    on_cpu = load_hardware(cluster.hardware, cluster.gpus_per_node).device == "cpu"
    folder, site = run.path.absolute(), _profile(profile)
    values = {
        "name": config.run.name,
        "nodes": cluster.nodes,
        "ranks_per_node": cluster.gpus_per_node,
        "gpus_line": f"#SBATCH --gpus-per-node={cluster.gpus_per_node}" if not on_cpu else "# no GPUs: CPU ranks",
        "time": _word("slurm.time", slurm.time),
        "output": _path("run.directory", folder / "logs").replace("%", "%%") + "/slurm-%j.log",
        "directory": _path("the working directory", Path.cwd()),
        "signal_before_limit_seconds": slurm.signal_before_limit_seconds,
        "site_lines": "\n".join(_site_lines(config, site, None if on_cpu else cores_per_gpu))
        or "# no options of this site",
        "profile": site.commands,
        "run": shlex.quote(str(folder)),
        "python": shlex.quote(sys.executable),
        "python_path": _python_path(),
        "accelerator": _ON_CPU if on_cpu else _ON_GPU,
    }
    template = shipped(TEMPLATE).read_text(encoding="utf-8")
    return _PLACEHOLDER.sub(lambda match: str(values[match[1]]), template)


def next_commands(run: RunDir) -> str:
    """Commands to follow, look at, stop and view the job; each works when copied."""
    folder = copyable(run)
    verbs = {"follow": "logs -f", "state": "status", "stop": "stop", "view": "tensorboard"}
    return "\n".join(f"{what:<8}megatrain {verb} {folder}" for what, verb in verbs.items())


def _site_lines(config: Config, site: _Profile, cores: int | None) -> list[str]:
    """The #SBATCH lines of this site: the profile's, over them the configuration's; `cores` where neither says."""
    slurm = config.slurm
    named = {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "cpus-per-task": slurm.cpus_per_task,
    }
    lines = {key: f"={_word(f'slurm.{key}', value)}" for key, value in named.items() if value is not None}
    for key, extra in slurm.extra.items():
        option = key.replace("_", "-")
        _refuse_owned(f"slurm.extra.{key}: {extra!r}", option)
        lines[option] = "" if isinstance(extra, bool) else f"={_word(f'slurm.extra.{key}', extra)}"
    dropped = {key.replace("_", "-") for key, extra in slurm.extra.items() if extra is False}
    options = site.options | lines
    if cores is not None and not options.keys() & {"cpus-per-task", "cpus-per-gpu"}:
        options["cpus-per-task"] = f"={cores}"
    return [f"#SBATCH --{option}{value}" for option, value in options.items() if option not in dropped]


def _refuse_owned(where: str, option: str) -> None:
    if option in _OWNED:
        instead = f" Set {_OWNED[option]} instead." if _OWNED[option] else ""
        raise ConfigError(f"{where}: megatrain sets --{option} itself.{instead}")


def _word(field: str, value: str | int) -> str:
    if not _WORD.fullmatch(str(value)):
        raise ConfigError(f"{field}: {value!r}: must be one word, as sbatch takes it: no spaces, quotes or newlines.")
    return str(value)


def _path(field: str, path: Path) -> str:
    return _word(field, str(path))


def _profile(name: str | None) -> _Profile:
    """A site profile: #SBATCH options, and shell for module loads, network interfaces, containers."""
    if name is None:
        return _Profile({}, "")
    path = Path(name)
    if "/" not in name:
        known = sorted(file.stem for file in shipped(PROFILES).glob("*.sh"))
        if name not in known:
            raise ConfigError(f"--profile {name}: there is no such profile. Known: {', '.join(known)}; or give a path.")
        path = shipped(PROFILES) / f"{name}.sh"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--profile {name}: {path} cannot be read: {error}") from None
    options: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        _refuse_secrets(f"--profile {name}: {path}:{number}", line)
        if not line.startswith("#SBATCH"):
            continue
        match = _DIRECTIVE.fullmatch(line)
        if match is None:
            raise ConfigError(
                f"--profile {name}: {path}:{number}: {line!r}: must be #SBATCH --option or --option=value"
            )
        if match[1] not in _SITE_OPTIONS:
            _refuse_owned(f"--profile {name}: {path}:{number}", match[1])
        options[match[1]] = match[2] or ""
    return _Profile(options, "\n".join(line for line in lines if not line.startswith("#SBATCH")))


def _refuse_secrets(where: str, line: str) -> None:
    """The script is kept in the run's folder and in Slurm's own records, where others can read it."""
    match = _ASSIGNMENT.fullmatch(line)
    secret = match[1] if match and is_secret_name(match[1]) else credentials_in(line)
    if secret:
        raise ConfigError(
            f"{where}: holds {secret}, and the job script can be read by others. Export it before you submit, or read "
            "it in the profile from a file of yours: NAME=$(cat FILE)"
        )


def _python_path() -> str:
    """A checkout that is not installed is found by PYTHONPATH; the job needs the same, made absolute."""
    root = source_root()
    return "" if root is None else f"export PYTHONPATH={shlex.quote(str(root))}${{PYTHONPATH:+:$PYTHONPATH}}\n"
