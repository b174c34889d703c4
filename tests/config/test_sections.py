"""The models of a run: strict, frozen, and with arithmetic that others rely on."""

import pytest
from pydantic import ValidationError

from megatrain.config import (
    DataSection,
    FinetuneConfig,
    OptimizerSection,
    PretrainConfig,
    TrainingSection,
)
from megatrain.model.families.llama.section import LlamaSection

MODEL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 512,
}


def pretrain(**sections):
    return PretrainConfig.model_validate(
        {
            "run": {"name": "x"},
            "model": MODEL,
            "data": {"sequence_length": 128, "train": [{"path": "d"}]},
            "training": {"steps": 10, "global_batch_size": 8},
        }
        | sections
    )


def test_parameters_are_counted_by_hand():
    model = LlamaSection.model_validate(MODEL)
    attention = 64 * 64 + 2 * (64 * 32) + 64 * 64  # query, key and value, output
    mlp = 3 * 64 * 128
    norms = 2 * 64
    head = embedding = 512 * 64
    assert model.parameters == 2 * (attention + mlp + norms) + 64 + head + embedding
    assert model.matmul_parameters == 2 * (attention + mlp) + head
    assert model.model_copy(update={"tie_word_embeddings": True}).parameters == model.parameters - embedding


def test_a_known_model():
    """Llama 2 7B has 6,738,415,616 parameters."""
    llama = LlamaSection(
        num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, intermediate_size=11008, vocab_size=32000
    )
    assert llama.parameters == 6_738_415_616


def test_flops_are_six_a_weight_and_half_of_the_attention_square():
    model = LlamaSection.model_validate(MODEL)
    assert model.flops_per_token(128) == 6 * model.matmul_parameters + 6 * 2 * 64 * 128


def test_defaults_that_follow_from_other_fields():
    model = LlamaSection.model_validate(MODEL | {"num_key_value_heads": None})
    assert (model.key_value_heads, model.head_size) == (4, 16)
    assert LlamaSection.model_validate(MODEL | {"head_dim": 32}).head_size == 32
    with pytest.raises(ValueError, match="not resolved"):
        _ = LlamaSection.model_validate(MODEL | {"vocab_size": "auto"}).padded_vocab_size


def test_a_run_in_tokens_ends_with_the_step_that_reaches_them():
    config = pretrain(training={"tokens": 8 * 128 * 3 + 1, "global_batch_size": 8})
    assert config.tokens_per_step == 1024
    assert config.total_steps == 4
    assert pretrain().total_steps == 10


@pytest.mark.parametrize("number", [2.5e9, 2_500_000_000])
def test_whole_floats_are_counts(number):
    assert TrainingSection(tokens=number, global_batch_size=1).tokens == 2_500_000_000


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (TrainingSection, {"steps": 2.5, "global_batch_size": 1}),
        (TrainingSection, {"steps": 0, "global_batch_size": 1}),
        (TrainingSection, {"steps": "10", "global_batch_size": 1}),
        (TrainingSection, {"steps": True, "global_batch_size": 1}),
        (TrainingSection, {"steps": float("inf"), "global_batch_size": 1}),
        (TrainingSection, {"steps": 10, "global_batch_size": 1, "micro_batch_size": "automatic"}),
        (OptimizerSection, {"learning_rate": 0.0}),
        (OptimizerSection, {"learning_rate": float("inf")}),
        (OptimizerSection, {"eps": float("nan")}),
        (OptimizerSection, {"learning_rate": -1e-3}),
        (OptimizerSection, {"betas": [0.9, 1.5]}),
        (OptimizerSection, {"betas": [0.9]}),
        (OptimizerSection, {"lr": 1e-3}),
        (DataSection, {"sequence_length": 8, "train": []}),
        (DataSection, {"sequence_length": 8, "train": [{"path": ""}]}),
        (DataSection, {"sequence_length": 8, "train": [{"path": "d", "weight": -1.0}]}),
    ],
)
def test_strict(section, values):
    with pytest.raises(ValidationError):
        section.model_validate(values)


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        pretrain().run.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b", "-x", "a\n"])
def test_a_name_is_one_safe_folder(name):
    with pytest.raises(ValidationError):
        pretrain(run={"name": name})


@pytest.mark.parametrize("time", ["30", 30, "12:00:00", "2-00", "2-00:00:00"])
def test_slurm_times(time):
    assert pretrain(slurm={"time": time}).slurm.time == str(time)


@pytest.mark.parametrize("time", ["", "a day", "12:00:00:00", "-1", "1:00\n#SBATCH --nodes=9"])
def test_what_is_no_slurm_time(time):
    with pytest.raises(ValidationError):
        pretrain(slurm={"time": time})


def test_a_fine_tuning_knows_its_length_once_resolved():
    config = FinetuneConfig.model_validate(
        {
            "run": {"name": "x"},
            "finetune": {"base": "runs/base", "train": ["a.jsonl"]},
            "training": {"steps": 1, "global_batch_size": 8},
        }
    )
    with pytest.raises(ValueError, match="not resolved"):
        _ = config.sequence_length
