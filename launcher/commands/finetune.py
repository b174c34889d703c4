"""`megatrain finetune`."""

from launcher.commands.options import DryRun, File, HostFile, Hosts, Json, Overrides, Ranks, Resume


def finetune(
    file: File,
    overrides: Overrides = None,
    nproc: Ranks = None,
    hosts: Hosts = None,
    hostfile: HostFile = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fine-tune on this machine, from a run or a model in Hugging Face's format.

    Example: megatrain finetune configs/quickstart-finetune.yaml finetune.base=runs/llama-125m --nproc 8
    """
    from launcher.commands.start_run import start_run
    from launcher.launch.start import LaunchTarget

    target = LaunchTarget.from_options(nproc, hosts, hostfile)
    start_run(file, overrides, target, verb="finetune", resume=resume, dry_run=dry_run, as_json=as_json)
