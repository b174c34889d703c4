"""One rank of a run of any task: `python -m megatrain.train RUN`, under torchrun's variables or srun."""

from contextlib import closing

from megatrain.base.registry import load_object
from megatrain.run.directory import RunDir
from megatrain.run.inputs import load_run
from megatrain.train import rank


def train_run(run_dir: RunDir, resume: str) -> None:
    from megatrain.config.resolved import ResolvedFinetune
    from megatrain.tasks.registry import TASKS
    from megatrain.train.build import build
    from megatrain.train.loop import run_validation, train

    config = load_run(run_dir)
    task = load_object(TASKS.get(config.task.name).task)(config)
    parts, start = build(config, run_dir, task, resume=resume)
    with closing(parts):
        for line in task.lines(start.progress):
            parts.report.line(line)
        at_start = config.evaluation.at_start
        if at_start is None:
            at_start = isinstance(config, ResolvedFinetune) or config.continued is not None
        if start.step == 0 and at_start:
            parts.early_stopping.check(run_validation(parts, start.progress))
        train(parts, start)


if __name__ == "__main__":
    rank.main("megatrain.train", __doc__, train_run)
