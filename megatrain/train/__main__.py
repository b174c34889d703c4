"""One rank of a pretraining run: `python -m megatrain.train RUN`, under torchrun's variables or srun."""

import argparse
from pathlib import Path

from megatrain.config import PretrainConfig
from megatrain.config_file import load
from megatrain.errors import ConfigError
from megatrain.run_dir import RunDir
from megatrain.train.process import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="megatrain.train", description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder with config.yaml and ds_config.json")
    parser.add_argument("--resume", default="auto", metavar="auto|must|never|STEP")
    arguments = parser.parse_args()
    run_dir = RunDir(arguments.run)
    run(lambda: pretrain(run_dir, arguments.resume), run_dir)


def pretrain(run_dir: RunDir, resume: str) -> None:
    from megatrain.data.loader import EvaluationLoader, TrainLoader
    from megatrain.train.build import build
    from megatrain.train.loop import train

    config = load(run_dir.config)
    if not isinstance(config, PretrainConfig):
        raise ConfigError(f"{run_dir.config}: is a fine-tuning run; start it with `megatrain finetune`")
    micro_batch_size = config.training.micro_batch_size
    assert isinstance(micro_batch_size, int), "a resolved configuration"
    parts, position = build(
        config,
        run_dir,
        resume=resume,
        make_loader=lambda mesh: TrainLoader(
            config.data,
            global_batch_size=config.training.global_batch_size,
            micro_batch_size=micro_batch_size,
            data_rank=mesh.data_rank,
            data_size=mesh.data_parallel,
            seed=config.run.seed,
        ),
        validation=lambda mesh: (
            (
                lambda: EvaluationLoader(
                    config.data.validation,
                    sequence_length=config.data.sequence_length,
                    attend_across_documents=config.data.attend_across_documents,
                    sequences=config.evaluation.sequences,
                    micro_batch_size=micro_batch_size,
                    data_rank=mesh.data_rank,
                    data_size=mesh.data_parallel,
                )
            )
            if config.data.validation
            else None
        ),
    )
    try:
        train(parts, position.step)
        parts.report.ended(config.total_steps, run_dir.step(config.total_steps))
    finally:
        parts.loader.close()
        parts.report.close()
        parts.watchdog.close()


if __name__ == "__main__":
    main()
