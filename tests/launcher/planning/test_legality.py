"""Every rule: what it refuses, with its sentence; and that DeepSpeed or the trainer does refuse it."""

import pytest

from launcher.planning.legality import RULES, Run, first_violation
from megatrain.model.families.transformers.section import TransformersSection
from megatrain.model.family import FAMILIES
from megatrain.topology import Topology
from tests.launcher.shapes import MODEL

LEGAL = {
    "tensor_parallel": 2,
    "context_parallel": 2,
    "data_parallel": 2,
    "sequence_parallel": True,
    "zero_stage": 1,
    "offload_optimizer": "cpu",
    "zero_hpz_partition_size": 1,
    "micro_batch_size": 2,
}


ANY_OTHER = TransformersSection(configuration={"model_type": "opt"})


def run(**changes):
    facts = {"model": MODEL, "world_size": 8, "ranks_per_node": 8, "global_batch_size": 16, "sequence_lengths": (128,)}
    return Run(**(facts | changes))


BROKEN = {  # rule: the run, the choice, the reason
    "whole model": (
        run(model=ANY_OTHER),
        {"tensor_parallel": 2},
        f"tensor_parallel=2: {FAMILIES.get('transformers').whole}",
    ),
    "whole sequences": (
        run(model=ANY_OTHER),
        {"context_parallel": 2},
        f"context_parallel=2: {FAMILIES.get('transformers').whole}",
    ),
    "ranks": (run(world_size=7), {"tensor_parallel": 2}, "tensor_parallel=2 does not divide 7 ranks"),
    "slices": (run(), {"tensor_parallel": 8}, "tensor_parallel=8 does not divide 4 key-value heads"),
    "node": (run(ranks_per_node=2), {"tensor_parallel": 4}, "tensor_parallel=4 reaches beyond a node of 2 ranks"),
    "context ranks": (
        run(world_size=6),
        {"tensor_parallel": 2, "context_parallel": 2},
        "tensor_parallel=2 × context_parallel=2 do not divide 6 ranks",
    ),
    "context heads": (
        run(),
        {"tensor_parallel": 2, "context_parallel": 4},
        "context_parallel=4 does not divide 4 key-value heads over 2 tensor-parallel ranks",
    ),
    "context length": (
        run(sequence_lengths=(128, 3)),
        {"context_parallel": 2},
        "context_parallel=2 does not divide the sequence length (3)",
    ),
    "context of the task": (
        run(whole_sequences=True),
        {"context_parallel": 2},
        "context_parallel=2 shares out sequences, of which the task's loss needs the whole",
    ),
    "batch": (
        run(global_batch_size=6),
        {"tensor_parallel": 2, "data_parallel": 4},
        "4 data-parallel ranks do not divide training.global_batch_size (6)",
    ),
    "sequence needs tensor": (
        run(),
        {"tensor_parallel": 1, "sequence_parallel": True},
        "sequence_parallel needs tensor_parallel > 1",
    ),
    "sequence length": (
        run(sequence_lengths=(128, 127)),
        {"tensor_parallel": 2, "context_parallel": 1, "sequence_parallel": True},
        "tensor_parallel=2 does not divide the sequence length (127), as sequence_parallel asks",
    ),
    "fp8 sides": (
        run(precision="fp8", model=MODEL.model_copy(update={"hidden_size": 264})),
        {"tensor_parallel": 1},
        "no linear layer's sides are multiples of 16, as training.precision=fp8 asks",
    ),
    "fp8 tokens": (
        run(precision="fp8", sequence_lengths=(128, 24)),
        {"context_parallel": 1, "micro_batch_size": 1},
        "micro_batch_size=1 × 24 tokens over context_parallel=1 are no multiple of 16, as training.precision=fp8 asks",
    ),
    "stage": (run(), {"zero_stage": 4}, "zero_stage=4: DeepSpeed has stages 0 to 3"),
    "searching passes": (
        run(searches=True),
        {"zero_stage": 3},
        "zero_stage=3 reduces gradients of a block's weights whenever a backward pass leaves it, and those of "
        "finetune.adversarial.method=pgd that search a perturbation make none. Take a stage below, or fgm",
    ),
    "offload needs ZeRO": (
        run(),
        {"zero_stage": 0, "offload_optimizer": "cpu"},
        "offload_optimizer=cpu needs zero_stage 1, 2 or 3: without ZeRO DeepSpeed offloads nothing",
    ),
    "hpZ needs stage 3": (
        run(),
        {"zero_stage": 2, "zero_hpz_partition_size": 2},
        "zero_hpz_partition_size=2 needs zero_stage 3: no other stage gathers weights in its passes",
    ),
    "hpZ replicas": (
        run(world_size=12),
        {"tensor_parallel": 2, "zero_hpz_partition_size": 4},
        "zero_hpz_partition_size=4 does not divide 6 replicas",
    ),
    "hpZ node": (
        run(world_size=32),
        {"tensor_parallel": 2, "zero_hpz_partition_size": 8},
        "zero_hpz_partition_size=8 × tensor_parallel=2 do not divide a node of 8 ranks",
    ),
    "micro-batch": (
        run(),
        {"tensor_parallel": 2, "data_parallel": 4, "micro_batch_size": 3},
        "micro_batch_size=3 does not divide the 4 sequences of each of 4 data-parallel ranks",
    ),
}


def test_every_rule_is_broken_here():
    assert [rule.name for rule in RULES] == list(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_gives_its_reason_and_its_fields(name):
    facts, choice, reason = BROKEN[name]
    rule = next(rule for rule in RULES if rule.name == name)
    assert rule.broken(facts, choice) == reason
    assert first_violation(facts, choice) == ({field: choice[field] for field in rule.fields}, reason)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("num_attention_heads", 6, "6 attention heads"),
        ("intermediate_size", 510, "model.intermediate_size (510)"),
        ("vocab_size", 1022, "model.vocab_size (1022)"),
    ],
)
def test_what_tensor_parallelism_slices(field, value, reason):
    facts = run(model=MODEL.model_copy(update={field: value}))
    assert first_violation(facts, {"tensor_parallel": 4})[1] == f"tensor_parallel=4 does not divide {reason}"


def test_a_second_copy_of_all_replicas_is_refused():
    reason = "zero_hpz_partition_size=8: these are all replicas, whose second copy would be the first once more"
    assert first_violation(run(), {"tensor_parallel": 1, "zero_hpz_partition_size": 8})[1] == reason
    assert first_violation(run(world_size=16), {"tensor_parallel": 1, "zero_hpz_partition_size": 8}) is None


def test_a_legal_choice_breaks_none():
    assert first_violation(run(), LEGAL) is None
    assert all(rule.broken(run(), LEGAL) is None for rule in RULES)


def test_a_rule_is_asked_once_its_fields_are_known_and_not_again():
    facts = run(global_batch_size=6)
    assert first_violation(facts, {"tensor_parallel": 2}) is None
    choice = {"tensor_parallel": 2, "data_parallel": 4}
    assert first_violation(facts, choice, known={"tensor_parallel": 2}) is not None
    assert first_violation(facts, {**choice, "zero_stage": 1}, known=choice) is None


def test_ranks_is_the_topologys_rule():
    with pytest.raises(ValueError, match="does not divide"):
        Topology(world_size=7, tensor_parallel=2)


@pytest.mark.parametrize(
    ("batch", "micro", "steps"),
    [(6, 1, 4), (16, 3, 5)],  # 6 sequences over 4 ranks; 4 sequences in threes
    ids=["batch", "micro-batch"],
)
def test_batches_are_deepspeeds_rule(monkeypatch, batch, micro, steps):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
    }
    with pytest.raises(AssertionError, match="train_batch_size is not equal"):
        DeepSpeedConfig(settings)


def test_stages_are_deepspeeds_rule(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    assert DeepSpeedZeroConfig(stage=3).stage == 3
    with pytest.raises(ValueError, match="stage"):
        DeepSpeedZeroConfig(stage=4)
