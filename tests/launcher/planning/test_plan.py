"""The planner: every fixed field is kept, every refusal has its reason, and the ranking prefers what it says."""

import pytest

from launcher.installation import shipped
from launcher.planning.hardware import load_hardware
from launcher.planning.memory import USABLE
from launcher.planning.plan import make_plan, resolve
from launcher.planning.plan_result import NothingFitsError
from launcher.planning.run_time import run_seconds
from megatrain.base.errors import ConfigError, DataError, PreflightError
from megatrain.config.file import dump_config, load_config, parse_config

LLAMA_8B = (
    "cluster.hardware=h100-sxm",
    "cluster.gpus_per_node=8",
    "model.num_hidden_layers=32",
    "model.hidden_size=4096",
    "model.num_attention_heads=32",
    "model.num_key_value_heads=8",
    "model.intermediate_size=14336",
    "model.vocab_size=128256",
    "data.sequence_length=8192",
    "training.global_batch_size=128",
)


def reasons(report):
    return {rejected.reason for rejected in report.rejected}


def test_every_fixed_field_is_a_constraint(tiny):
    fixed = {
        "tensor_parallel": 2,
        "zero_stage": 3,
        "sequence_parallel": True,
        "activation_checkpointing": "full",
    }
    overrides = [f"parallel.{name}={value}" for name, value in fixed.items()]
    report = make_plan(tiny(*overrides, "training.micro_batch_size=2"))
    for plan in report.candidates:
        assert {name: getattr(plan, name) for name in fixed} == fixed
        assert (plan.micro_batch_size, plan.gradient_accumulation_steps, plan.data_parallel) == (2, 4, 1)


def test_batch_arithmetic_holds_for_every_candidate(tiny):
    config = tiny("cluster.gpus_per_node=4", "training.global_batch_size=24")
    for plan in make_plan(config).candidates:
        assert plan.micro_batch_size * plan.gradient_accumulation_steps * plan.data_parallel == 24
        assert plan.tensor_parallel * plan.data_parallel == 4


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["cluster.gpus_per_node=4"], "tensor_parallel=4 does not divide 2 key-value heads"),
        (["model.intermediate_size=127"], "tensor_parallel=2 does not divide model.intermediate_size (127)"),
        (["model.vocab_size=511"], "tensor_parallel=2 does not divide model.vocab_size (511)"),
        (["training.global_batch_size=7"], "2 data-parallel ranks do not divide training.global_batch_size (7)"),
        (
            ["data.sequence_length=127"],
            "tensor_parallel=2 does not divide the sequence length (127), as sequence_parallel asks",
        ),
        (
            ["training.micro_batch_size=8"],
            "micro_batch_size=8 does not divide the 4 sequences of each of 2 data-parallel ranks",
        ),
    ],
)
def test_a_refused_layout_says_why(tiny, overrides, reason):
    assert reason in reasons(make_plan(tiny(*overrides)))


WARMUP = (
    "training.batch_size_warmup=[{until_sample: 50, global_batch_size: 8}, {until_sample: 150, global_batch_size: 12}]"
)


def test_every_batch_of_a_warmup_is_whole_micro_batches(tiny):
    config = tiny("cluster.gpus_per_node=2", "training.global_batch_size=24", WARMUP)
    report = make_plan(config)
    assert {plan.micro_batch_size for plan in report.candidates} <= {1, 2, 4}
    chosen = report.chosen
    assert [step.global_batch_size for step in chosen.warmup] == [8, 12]
    for step in chosen.warmup:
        assert (
            step.gradient_accumulation_steps * chosen.micro_batch_size * chosen.data_parallel == step.global_batch_size
        )
        assert step.step_seconds < chosen.step_seconds
    assert [stage["global_batch_size"] for stage in chosen.to_json()["batch_size_warmup"]] == [8, 12]
    steps = 7 * chosen.seconds_of(8) + 8 * chosen.seconds_of(12) + (config.total_steps - 15) * chosen.step_seconds
    assert run_seconds(config, chosen) == pytest.approx(steps), "56 samples in steps of 8, 96 in steps of 12"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["cluster.gpus_per_node=8", "parallel.tensor_parallel=1"], "8 data-parallel ranks do not divide"),
        (
            ["cluster.gpus_per_node=4", "parallel.tensor_parallel=1", "training.micro_batch_size=2"],
            "does not divide the 3",
        ),
    ],
)
def test_a_batch_of_a_warmup_that_cannot_be_shared_out_is_named_with_a_fix(tiny, overrides, said):
    with pytest.raises(NothingFitsError) as raised:
        make_plan(tiny(*overrides, "training.global_batch_size=24", WARMUP))
    assert said in str(raised.value)
    assert "training.batch_size_warmup.1.global_batch_size (12); take 16" in str(raised.value)


def test_tensor_parallelism_stays_inside_a_node(tiny):
    with pytest.raises(PreflightError, match="tensor_parallel=2 reaches beyond a node of 1 ranks"):
        make_plan(tiny("cluster.nodes=2", "cluster.gpus_per_node=1", "parallel.tensor_parallel=2"))


def test_sequence_parallelism_needs_tensor_parallelism(tiny):
    with pytest.raises(PreflightError, match="sequence_parallel needs tensor_parallel > 1"):
        make_plan(tiny("parallel.sequence_parallel=true", "parallel.tensor_parallel=1"))


def test_sequence_parallelism_divides_the_sequences_of_every_stage(tiny):
    asked = ("parallel.tensor_parallel=2", "parallel.sequence_parallel=true")
    assert make_plan(tiny(*asked, "data.phases=[{from_sample: 8, sequence_length: 2}]")).candidates
    with pytest.raises(PreflightError, match=r"tensor_parallel=2 does not divide the sequence length \(1\)"):
        make_plan(tiny(*asked, "data.phases=[{from_sample: 8, sequence_length: 1}]"))


def test_long_sequences_are_shared_where_they_are_too_long_or_too_few(tiny):
    long = (*LLAMA_8B, "data.sequence_length=131072", "training.global_batch_size=16", "cluster.nodes=16")
    chosen = make_plan(tiny(*long)).chosen
    assert chosen.context_parallel > 1
    assert chosen.tensor_parallel * chosen.context_parallel * chosen.data_parallel == 128
    assert chosen.micro_batch_size * chosen.gradient_accumulation_steps * chosen.data_parallel == 16
    assert make_plan(tiny(*LLAMA_8B, "cluster.nodes=16", "data.sequence_length=2048")).chosen.context_parallel == 1


def test_short_sequences_are_shared_only_when_asked_for(tiny):
    four = ("cluster.gpus_per_node=4", "parallel.tensor_parallel=1")
    assert {plan.context_parallel for plan in make_plan(tiny(*four)).candidates} == {1}
    assert {plan.context_parallel for plan in make_plan(tiny(*four, "parallel.context_parallel=2")).candidates} == {2}


def test_zero_1_is_the_default_and_zero_0_is_never_chosen(tiny):
    for precision in ("bf16", "fp32"):
        report = make_plan(tiny(f"training.precision={precision}"))
        assert report.chosen.zero_stage == 1
        assert 0 in {plan.zero_stage for plan in report.candidates}
    assert make_plan(tiny("parallel.zero_stage=0")).chosen.zero_stage == 0


def test_tensor_parallelism_only_where_state_does_not_fit(tiny):
    few = make_plan(tiny(*LLAMA_8B, "parallel.zero_stage=1"))
    many = make_plan(tiny(*LLAMA_8B, "cluster.nodes=16"))
    assert few.chosen.tensor_parallel > 1, "8 ranks cannot hold the gradients and optimizer of 8B each"
    assert many.chosen.tensor_parallel == 1


def test_what_does_not_fit_is_not_a_candidate(tiny):
    report = make_plan(tiny(*LLAMA_8B))
    assert all(plan.memory.total <= USABLE * report.hardware.memory_bytes for plan in report.candidates)
    assert any("GiB per rank" in reason for reason in reasons(report))


TIGHT = (
    *LLAMA_8B,
    "parallel.zero_stage=1",
    "parallel.tensor_parallel=2",
    "parallel.context_parallel=1",
    "parallel.sequence_parallel=true",
    "parallel.activation_checkpointing=full",
    "training.micro_batch_size=2",
)


def test_as_few_blocks_recompute_as_fit(tiny):
    plans = {plan.layout.recompute_blocks: plan for plan in make_plan(tiny(*TIGHT)).candidates}
    every = plans.pop(None)
    ((few, some),) = plans.items()
    most = 0.8 * load_hardware("h100-sxm", 8).memory_bytes  # as every one that recomputes needs less
    assert 0 < few < 32
    assert some.step_seconds < every.step_seconds
    assert every.memory.total < some.memory.total <= most
    (given,) = make_plan(tiny(*TIGHT, f"parallel.recompute_blocks={few}")).candidates
    assert given == some
    (one_less,) = make_plan(tiny(*TIGHT, f"parallel.recompute_blocks={few - 1}")).candidates
    assert one_less.memory.total > most


def test_all_blocks_recompute_where_it_says_so(tiny):
    (plan,) = make_plan(tiny(*TIGHT, "parallel.recompute_blocks=all")).candidates
    assert plan.layout.recompute_blocks is None


def test_a_number_of_blocks_that_cannot_be(tiny):
    with pytest.raises(ConfigError, match=r"recompute_blocks: 99: the model has \d+ blocks\. Try all\."):
        make_plan(tiny("parallel.recompute_blocks=99"))
    with pytest.raises(
        ConfigError, match=r"recompute_blocks: 1: parallel\.activation_checkpointing is none\. Try selective\."
    ):
        make_plan(tiny("parallel.recompute_blocks=1", "parallel.activation_checkpointing=none"))


def test_when_nothing_fits_the_three_nearest_misses_are_told(tiny):
    with pytest.raises(PreflightError) as caught:
        make_plan(tiny(*LLAMA_8B, "cluster.gpus_per_node=1", "parallel.offload_optimizer=none"))
    misses = [line for line in str(caught.value).splitlines() if line.startswith("nearest miss: ")]
    assert len(misses) == 3
    needed = [float(line.split("needs ")[1].split(" GiB")[0]) for line in misses]
    assert needed == sorted(needed)


def test_candidates_are_ranked_and_the_first_is_chosen(tiny):
    report = make_plan(tiny(*LLAMA_8B, "cluster.nodes=4"))
    assert report.chosen is report.candidates[0]
    alike = [
        plan
        for plan in report.candidates
        if (plan.zero_stage, plan.tensor_parallel, plan.activation_checkpointing) == (2, 1, "full")
    ]
    rates = [plan.tokens_per_second_per_gpu for plan in alike]
    assert len(rates) > 2
    assert rates == sorted(rates, reverse=True)


def test_json_has_the_documented_shape(tiny):
    document = make_plan(tiny(*LLAMA_8B)).to_json()
    assert list(document) == ["chosen", "candidates", "rejected"]
    assert set(document["chosen"]) >= {
        *(
            "tensor_parallel",
            "context_parallel",
            "data_parallel",
            "zero_stage",
            "sequence_parallel",
            "micro_batch_size",
        ),
        *("gradient_accumulation_steps", "activation_checkpointing", "memory_bytes", "step_seconds"),
        *("tokens_per_second_per_gpu", "mfu"),
    }
    memory = document["chosen"]["memory_bytes"]
    assert list(memory) == ["parameters", "gradients", "optimizer", "activations", "other", "total"]
    assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
    assert all(rejected["reason"] for rejected in document["rejected"])


def test_more_ranks_a_node_than_the_hardware_has(tiny):
    with pytest.raises(ConfigError, match="h100-sxm has 8 GPUs per node"):
        make_plan(tiny("cluster.hardware=h100-sxm", "cluster.gpus_per_node=16"))


def test_resolve_leaves_no_auto(tiny, here):
    config = tiny()
    resolved = resolve(config, make_plan(config).chosen)
    assert "auto" not in dump_config(resolved)
    assert parse_config(dump_config(resolved)).model_dump() == resolved.model_dump()


def test_resolve_follows_the_number_of_ranks_that_was_planned(tiny):
    config = tiny("cluster.nodes=2")
    report = make_plan(config, world_size=8)
    resolved = resolve(config, report.chosen)
    assert (resolved.cluster.nodes, resolved.cluster.gpus_per_node) == (1, 8)
    assert make_plan(resolved).chosen.layout == report.chosen.layout


@pytest.mark.parametrize("name", ["llama-125m", "llama-1b", "llama-7b"])
def test_the_example_runs_plan_well(name):
    config = load_config(shipped(f"configs/{name}.yaml"), ["model.vocab_size=32000"])
    chosen = make_plan(config).chosen
    assert (chosen.zero_stage, chosen.tensor_parallel) == (1, 1)
    assert 0.2 < chosen.mfu < 0.6


def test_the_long_example_shares_its_sequences():
    chosen = make_plan(load_config(shipped("configs/llama-8b-long.yaml"), ["model.vocab_size=128256"])).chosen
    assert chosen.context_parallel > 1
    assert chosen.mfu > 0.25


def test_a_vocabulary_that_nothing_tells(tiny, here):
    with pytest.raises(DataError, match="data/train"):
        make_plan(tiny("model.vocab_size=auto"))
