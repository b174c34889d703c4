"""One rank of a pretraining run: `python -m megatrain.train RUN`, under torchrun's variables or srun."""

from contextlib import closing

from megatrain.base.errors import ConfigError
from megatrain.config.resolved import ResolvedPretrain
from megatrain.run.directory import RunDir
from megatrain.run.inputs import load_run
from megatrain.train import rank


def pretrain(run_dir: RunDir, resume: str) -> None:
    from megatrain.data.loading.build_loader import build_loader
    from megatrain.data.loading.evaluation import EvaluationLoader
    from megatrain.hardware.device import device_type
    from megatrain.parallel.mesh import Mesh
    from megatrain.train.build import build
    from megatrain.train.loop import Loader, train

    config = load_run(run_dir)
    if not isinstance(config, ResolvedPretrain):
        raise ConfigError(f"{run_dir.config}: is a fine-tuning run; start it with `megatrain finetune`")
    micro_batch_size = config.training.micro_batch_size
    data = config.data

    def make_loader(mesh: Mesh) -> Loader:
        return build_loader(
            config, data_rank=mesh.data_rank, data_size=mesh.data_parallel, pin_memory=device_type() == "cuda"
        )

    def make_validation(mesh: Mesh) -> EvaluationLoader:
        return EvaluationLoader(
            data.validation,
            sequence_length=data.sequence_length,
            attend_across_documents=data.attend_across_documents,
            sequences=config.evaluation.sequences,
            micro_batch_size=micro_batch_size,
            data_rank=mesh.data_rank,
            data_size=mesh.data_parallel,
            reading=data.reading,
        )

    parts, position = build(
        config,
        run_dir,
        resume=resume,
        make_loader=make_loader,
        make_validation=make_validation if data.validation else None,
    )
    with closing(parts):
        train(parts, position)


if __name__ == "__main__":
    rank.main("megatrain.train", __doc__, pretrain)
