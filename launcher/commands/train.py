"""`megatrain train`."""

from launcher.commands.options import (
    CooldownDecay,
    CooldownFrom,
    CooldownMinimum,
    CooldownTokens,
    DryRun,
    File,
    HostFile,
    Hosts,
    Json,
    Overrides,
    Ranks,
    Resume,
)


def train(
    file: File,
    overrides: Overrides = None,
    nproc: Ranks = None,
    hosts: Hosts = None,
    hostfile: HostFile = None,
    resume: Resume = "auto",
    cooldown_from: CooldownFrom = None,
    cooldown_tokens: CooldownTokens = None,
    cooldown_decay: CooldownDecay = "sqrt",
    cooldown_minimum: CooldownMinimum = 0.0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train on this machine, or on several by ssh. With --json, the checks' findings.

    With --cooldown-from, a run of its own goes on from a checkpoint of another, which is left as it is, at the same
    place in the data and with the same optimizer state, and takes the learning rate from what it is there to its end.

    Example: megatrain train configs/llama-125m.yaml cluster.nodes=1 --nproc 8

    Example: megatrain train long.yaml run.name=long-cooldown --cooldown-from runs/long@40000 --cooldown-tokens 2e9
    """
    from launcher.commands.start_run import start_run
    from launcher.launch.start import LaunchTarget
    from launcher.runs.cooldown import Cooldown

    cooldown = Cooldown.from_options(cooldown_from, cooldown_tokens, cooldown_decay, cooldown_minimum)
    target = LaunchTarget.from_options(nproc, hosts, hostfile)
    start_run(file, overrides, target, verb="train", resume=resume, dry_run=dry_run, as_json=as_json, cooldown=cooldown)
