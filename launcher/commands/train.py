"""`megatrain train`."""

from launcher.commands.options import DryRun, File, HostFile, Hosts, Json, Overrides, Ranks, Resume


def train(
    file: File,
    overrides: Overrides = None,
    nproc: Ranks = None,
    hosts: Hosts = None,
    hostfile: HostFile = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train on this machine, or on several by ssh. With --json, the checks' findings.

    Example: megatrain train configs/llama-125m.yaml cluster.nodes=1 --nproc 8
    """
    from launcher.commands.start_run import start_run
    from launcher.launch.start import LaunchTarget

    target = LaunchTarget.from_options(nproc, hosts, hostfile)
    start_run(file, overrides, target, verb="train", resume=resume, dry_run=dry_run, as_json=as_json)
