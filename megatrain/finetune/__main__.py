"""One rank of a fine-tuning run: `python -m megatrain.finetune RUN`, under torchrun's variables or srun."""

from contextlib import closing
from pathlib import Path

from megatrain.config import FinetuneConfig
from megatrain.errors import ConfigError
from megatrain.run_dir import RunDir
from megatrain.run_inputs import load_run
from megatrain.train import process


def finetune(run_dir: RunDir, resume: str) -> None:
    from megatrain.data.text.tokenizer import Tokenizer
    from megatrain.finetune.examples import PackedRow, pack, read_examples
    from megatrain.finetune.loader import ExampleEvaluation, ExampleLoader
    from megatrain.parallel.mesh import Mesh
    from megatrain.train.build import build
    from megatrain.train.loop import run_validation, train

    config = load_run(run_dir)
    if not isinstance(config, FinetuneConfig):
        raise ConfigError(f"{run_dir.config}: is a pretraining run; start it with `megatrain train`")
    section, micro_batch_size = config.finetune, config.training.micro_batch_size
    assert config.tokenizer is not None, "a resolved configuration"
    assert isinstance(micro_batch_size, int), "a resolved configuration"
    tokenizer = Tokenizer.load(config.tokenizer.path)

    def rows(paths: tuple[str, ...]) -> list[PackedRow]:
        fields = {"prompt_field": section.prompt_field, "response_field": section.response_field}
        examples = read_examples(paths, tokenizer, sequence_length=config.sequence_length, **fields)
        return pack(examples, config.sequence_length, tokenizer.pad_id)

    training = rows(section.train)
    held_out = rows(section.validation)[: config.evaluation.sequences] if section.validation else []

    def make_loader(mesh: Mesh) -> ExampleLoader:
        return ExampleLoader(
            training,
            global_batch_size=config.training.global_batch_size,
            micro_batch_size=micro_batch_size,
            data_rank=mesh.data_rank,
            data_size=mesh.data_parallel,
            seed=config.run.seed,
        )

    def make_validation(mesh: Mesh) -> ExampleEvaluation:
        return ExampleEvaluation(
            held_out, micro_batch_size=micro_batch_size, data_rank=mesh.data_rank, data_size=mesh.data_parallel
        )

    parts, position = build(
        config,
        run_dir,
        resume=resume,
        make_loader=make_loader,
        make_validation=make_validation if held_out else None,
        initial_weights=Path(section.base),
    )
    with closing(parts):
        if position.step == 0:
            run_validation(parts, position.progress)  # what fine-tuning starts from
        train(parts, position)


if __name__ == "__main__":
    process.main("megatrain.finetune", __doc__, finetune)
