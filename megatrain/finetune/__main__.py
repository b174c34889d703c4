"""One rank of a fine-tuning run: `python -m megatrain.finetune RUN`, under torchrun's variables or srun."""

from contextlib import closing
from pathlib import Path

from megatrain.base.errors import ConfigError
from megatrain.config.resolved import ResolvedFinetune
from megatrain.run.directory import RunDir
from megatrain.run.inputs import load_run
from megatrain.train import rank


def finetune(run_dir: RunDir, resume: str) -> None:
    from megatrain.data.examples.chat_template import ChatTemplate
    from megatrain.data.examples.example_set import ExampleSet, read_example_set
    from megatrain.data.examples.loader import ExampleEvaluation, ExampleLoader
    from megatrain.data.text.tokenizer import Tokenizer
    from megatrain.parallel.mesh import Mesh
    from megatrain.train.build import build
    from megatrain.train.loop import run_validation, train

    config = load_run(run_dir)
    if not isinstance(config, ResolvedFinetune):
        raise ConfigError(f"{run_dir.config}: is a pretraining run; start it with `megatrain train`")
    section, micro_batch_size = config.finetune, config.training.micro_batch_size
    tokenizer, template = Tokenizer.load(config.tokenizer.path), ChatTemplate.load(config.tokenizer.path)
    vocabulary = config.model.padded_vocab_size

    def read(paths: tuple[str, ...]) -> ExampleSet:
        return read_example_set(
            paths,
            tokenizer,
            section,
            template=template,
            sequence_length=config.sequence_length,
            vocab_size=vocabulary,
        )

    training = read(section.train)
    held_out = read(section.validation).rows[: config.evaluation.sequences] if section.validation else []

    def make_loader(mesh: Mesh) -> ExampleLoader:
        return ExampleLoader(
            training.rows,
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
        for line in (training.describe(config, position.progress), *training.warnings()):
            parts.report.line(line)
        if position.step == 0:
            run_validation(parts, position.progress)  # what fine-tuning starts from
        train(parts, position)


if __name__ == "__main__":
    rank.main("megatrain.finetune", __doc__, finetune)
