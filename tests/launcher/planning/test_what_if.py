"""The one-line answers, checked against plans of what they name."""

import re

import pytest

from launcher.planning.plan import make_plan
from launcher.planning.sweep import plan_on
from launcher.planning.what_if import doubling, gpus_for_days, largest_batch, largest_model
from megatrain.base.errors import PreflightError

LLAMA_1B = (
    "cluster.hardware=h100-sxm",
    "cluster.gpus_per_node=8",
    "cluster.nodes=2",
    "model.num_hidden_layers=16",
    "model.hidden_size=2048",
    "model.num_attention_heads=32",
    "model.num_key_value_heads=8",
    "model.intermediate_size=8192",
    "model.vocab_size=32768",
    "data.sequence_length=4096",
    "training.global_batch_size=256",
    "training.tokens=1e12",
)


def test_gpus_for_days_are_the_fewest(tiny):
    config = tiny(*LLAMA_1B)
    answer = gpus_for_days(config, 8)
    nodes = int(re.search(r"\((\d+) × 8 h100-sxm\)", answer)[1])
    assert plan_on(config, nodes).hours <= 24 * 8
    fewer = plan_on(config, nodes - 1)
    assert fewer.plan is None or fewer.hours > 24 * 8


def test_gpus_for_days_can_be_less_than_a_node(tiny):
    assert re.match(r"1 GPUs \(1 × 1", gpus_for_days(tiny(*LLAMA_1B, "training.tokens=1e8"), 20))


def test_too_few_days_and_what_would_be_the_best(tiny):
    assert re.match(r"no number of GPUs .* the best is [\d,]+ GPUs in", gpus_for_days(tiny(*LLAMA_1B), 0.01))


def test_no_gpu_is_large_enough(tiny):
    huge = tiny(*LLAMA_1B, "model.hidden_size=65536", "parallel.zero_stage=0", "parallel.tensor_parallel=1")
    with pytest.raises(PreflightError, match="--days 5: no layout of this run fits"):
        gpus_for_days(huge, 5)


def test_the_largest_batch_fits_and_the_next_does_not(tiny):
    config = tiny(*LLAMA_1B, "data.sequence_length=65536")
    micro = int(re.match(r"largest micro-batch: (\d+)", largest_batch(config))[1])

    def fits(size):
        sizes = {"micro_batch_size": size, "global_batch_size": size * 16}
        changed = config.model_copy(update={"training": config.training.model_copy(update=sizes)})
        try:
            return bool(make_plan(changed, gpus_alone=True).candidates)
        except PreflightError:
            return False

    assert fits(micro)
    assert not fits(2 * micro)


def test_the_largest_model_grows_with_memory(tiny):
    def billions(*overrides):
        number, unit = re.match(r"largest model: ([\d.]+)([MB])", largest_model(tiny(*LLAMA_1B, *overrides))).groups()
        return float(number) / (1000 if unit == "M" else 1)

    assert billions("cluster.hardware=h200") > billions() > billions("cluster.nodes=1") > 1


def test_doubling_names_both(tiny):
    answer = doubling(tiny(*LLAMA_1B))
    assert answer.startswith("2 → 4 nodes: ")
    assert 1.5 < float(re.search(r"([\d.]+) × the tokens/s", answer)[1]) <= 2.2
    refused = doubling(
        tiny(*LLAMA_1B, "training.global_batch_size=16", "parallel.tensor_parallel=1", "parallel.context_parallel=1")
    )
    assert refused.startswith("on 4 nodes: ")
