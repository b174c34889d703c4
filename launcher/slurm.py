"""A run as a Slurm job: render the script, hand it in, say how to follow it.

Nothing from a configuration reaches the shell unquoted: values in the script's body are quoted, and values on #SBATCH
lines must be plain words.
"""

import re
import shlex
import shutil
import string
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from launcher.files import shipped
from launcher.hardware import load_hardware
from launcher.plan import Plan
from launcher.run_files import is_finetune
from megatrain.config import Config
from megatrain.errors import ConfigError, PreflightError
from megatrain.run_dir import RunDir, write_atomically

TEMPLATE = "slurm/train.sbatch"
PROFILES = "slurm/profiles"
TIMEOUT_SECONDS = 30.0  # for each Slurm client: without a controller they try for minutes
_WORD = re.compile(r"^[A-Za-z0-9_.,:;/+=%@&|*!()\[\]<>~-]+$")

# Options that megatrain sets itself: where to change them instead.
_OWNED = {
    "job-name": "run.name",
    "nodes": "cluster.nodes",
    "ntasks": "cluster",
    "ntasks-per-node": "cluster.gpus_per_node",
    "gpus-per-node": "cluster.gpus_per_node",
    "time": "slurm.time",
    "signal": "slurm.signal_lead_seconds",
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


class Job(NamedTuple):
    id: str
    log: Path


class _Script(string.Template):
    """`@{name}` stands for a value, so that the shell's own `$` stays as it is."""

    delimiter = "@"
    idpattern = "(?!)"  # nothing: braces are a must
    braceidpattern = "[a-z_]+"


def render(config: Config, run: RunDir, plan: Plan, *, profile: str | None = None) -> str:
    """The complete script.

    Args:
        config: resolved.
        profile: a name in slurm/profiles, or the path of a shell file, that is put in before the job's first command.

    Raises:
        ConfigError: a value cannot stand on an #SBATCH line, or an option is megatrain's own.
    """
    cluster, slurm = config.cluster, config.slurm
    if plan.world_size != cluster.nodes * cluster.gpus_per_node:
        raise ConfigError("cluster: the plan is for another number of ranks")
    on_cpu = load_hardware(cluster.hardware, cluster.gpus_per_node).device == "cpu"
    folder = run.path.absolute()
    values = {
        "name": config.run.name,
        "nodes": cluster.nodes,
        "ranks_per_node": cluster.gpus_per_node,
        "gpus_line": f"#SBATCH --gpus-per-node={cluster.gpus_per_node}" if not on_cpu else "# no GPUs: CPU ranks",
        "time": _word("slurm.time", slurm.time),
        "output": _path("run.directory", folder / "logs").replace("%", "%%") + "/slurm-%j.log",
        "directory": _path("the working directory", Path.cwd()),
        "signal_lead_seconds": slurm.signal_lead_seconds,
        "site_lines": "\n".join(_site_lines(config)) or "# no options of this site",
        "profile": _profile(profile),
        "run": shlex.quote(str(folder)),
        "python": shlex.quote(sys.executable),
        "python_path": _python_path(),
        "module": "megatrain.finetune" if is_finetune(config) else "megatrain.train",
        "accelerator": "export DS_ACCELERATOR=cpu\n" if on_cpu else "",
    }
    return _Script(shipped(TEMPLATE).read_text(encoding="utf-8")).substitute(values)


def submit(script: str, run: RunDir) -> Job:
    """Write RUN/job.sbatch and hand it to sbatch.

    Raises:
        PreflightError: sbatch is missing, does not answer, or refuses the job; with its own words.
    """
    write_atomically(run.job_script, script)
    identifier = client("sbatch", "--parsable", str(run.job_script)).strip().split(";")[0]
    return Job(identifier, run.logs / f"slurm-{identifier}.log")


def test_only(script: str) -> str:
    """What sbatch says of when and where the job could start. Submits nothing.

    Raises:
        PreflightError: the job can never start here; with sbatch's reason.
    """
    return client("sbatch", "--test-only", text=script)


test_only.__test__ = False  # type: ignore[attr-defined] # not a test, whatever pytest thinks of its name


def next_commands(job: Job, run: RunDir) -> str:
    """Commands to follow, look at, stop and view the job; each works when copied."""
    log, folder = shlex.quote(str(job.log)), shlex.quote(str(run))
    return "\n".join(
        (
            f"follow  tail -F {log}",
            f"state   squeue -j {job.id}",
            f"stop    scontrol update JobId={job.id} Requeue=0 && scancel --signal=USR2 {job.id}",
            f"view    megatrain tensorboard {folder}",
        )
    )


def client(*command: str, text: str | None = None) -> str:
    """Run a Slurm client under a time-out; its standard output.

    Raises:
        PreflightError: it is missing, does not answer in time, or fails.
    """
    name = command[0]
    if shutil.which(name) is None:
        raise PreflightError(f"{name}: not found: this machine has no Slurm. Run it on a login node, or use `train`.")
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise PreflightError(f"{name}: no answer from Slurm in {TIMEOUT_SECONDS:.0f} s. Try `scontrol ping`.") from None
    if done.returncode:
        said = " ".join(line.removeprefix(f"{name}: error: ") for line in done.stderr.strip().splitlines())
        raise PreflightError(f"{name}: {said or f'failed with {done.returncode}'}")
    return done.stdout or done.stderr


def _site_lines(config: Config) -> list[str]:
    slurm = config.slurm
    options: dict[str, str | int | bool | None] = {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "cpus-per-task": slurm.cpus_per_task,
    }
    lines = [f"#SBATCH --{key}={_word(f'slurm.{key}', value)}" for key, value in options.items() if value is not None]
    for key, extra in slurm.extra.items():
        option = key.replace("_", "-")
        if option in _OWNED:
            instead = f" Set {_OWNED[option]} instead." if _OWNED[option] else ""
            raise ConfigError(f"slurm.extra.{key}: {extra!r}: megatrain sets --{option} itself.{instead}")
        if extra is True:
            lines.append(f"#SBATCH --{option}")
        elif extra is not False:
            lines.append(f"#SBATCH --{option}={_word(f'slurm.extra.{key}', extra)}")
    return lines


def _word(field: str, value: str | int) -> str:
    if not _WORD.match(str(value)):
        raise ConfigError(f"{field}: {value!r}: must be one word, as sbatch takes it: no spaces, quotes or newlines.")
    return str(value)


def _path(field: str, path: Path) -> str:
    return _word(field, str(path))


def _profile(name: str | None) -> str:
    """The text of a site profile: module loads, network interfaces, containers."""
    if name is None:
        return ""
    path = Path(name)
    if "/" not in name:
        known = sorted(file.stem for file in shipped(PROFILES).glob("*.sh"))
        if name not in known:
            raise ConfigError(f"--profile {name}: there is no such profile. Known: {', '.join(known)}; or give a path.")
        path = shipped(PROFILES) / f"{name}.sh"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--profile {name}: {path} cannot be read: {error}") from None


def _python_path() -> str:
    """A checkout that is not installed is found by PYTHONPATH; the job needs the same, made absolute."""
    root = Path(__file__).resolve().parent.parent
    inside = any(part in ("site-packages", "dist-packages") for part in root.parts)
    return "" if inside else f"export PYTHONPATH={shlex.quote(str(root))}${{PYTHONPATH:+:$PYTHONPATH}}\n"
