"""Rules between the fields of a run: each names its field, the rule and a way out."""

import pytest

from megatrain.base.progress import Progress
from megatrain.config.rules import validate, warmup_issue
from tests.config.test_sections import MODEL, pretrain


def rules(**sections):
    return {problem.field: problem for problem in validate(pretrain(**sections))}


def warmup(*stages, micro="auto"):
    """A run of batches of 8 after stages of (sample, size)."""
    given = [{"until_sample": until, "global_batch_size": size} for until, size in stages]
    batch = {"global_batch_size": 8, "micro_batch_size": micro, "batch_size_warmup": given}
    return {"training": {"steps": 10, **batch}}


def test_a_batch_size_may_grow_in_stages():
    assert rules(**warmup((10, 2), (30, 4), micro=2)) == {}


@pytest.mark.parametrize(
    ("sections", "field", "said"),
    [
        ({"training": {"global_batch_size": 8}}, "training", "exactly one of tokens and steps"),
        ({"training": {"steps": 1, "tokens": 1, "global_batch_size": 8}}, "training", "exactly one"),
        (
            {"training": {"steps": 1, "global_batch_size": 8, "micro_batch_size": 3}},
            "training.micro_batch_size",
            "does not divide training.global_batch_size (8)",
        ),
        (
            {"model": MODEL | {"num_attention_heads": 5}},
            "model.num_attention_heads",
            "does not divide model.hidden_size",
        ),
        ({"model": MODEL | {"num_key_value_heads": 3}}, "model.num_key_value_heads", "does not divide"),
        ({"model": MODEL | {"head_dim": 15}}, "model.head_dim", "must be even"),
        ({"parallel": {"tensor_parallel": 4}}, "parallel.tensor_parallel", "does not divide 2 key-value heads"),
        (
            {"parallel": {"offload_optimizer": "cpu"}, "optimizer": {"name": "muon"}},
            "parallel.offload_optimizer",
            "muon multiplies whole matrices in each update",
        ),
        (
            {"parallel": {"offload_optimizer": "cpu"}, "optimizer": {"name": "adafactor"}},
            "parallel.offload_optimizer",
            "adafactor adds up sums of all ranks in each update",
        ),
        ({"schedule": {"warmup_steps": 11}}, "schedule.warmup_steps", "is longer than the run"),
        (
            warmup((10, 4), (10, 6)),
            "training.batch_size_warmup.1.until_sample",
            "is not after the stage before it (10)",
        ),
        (
            warmup((10, 4), (20, 4)),
            "training.batch_size_warmup.0.global_batch_size",
            "is not below the batch after it (4)",
        ),
        (warmup((10, 8)), "training.batch_size_warmup.0.global_batch_size", "is not below the batch after it (8)"),
        (
            warmup((10, 3), micro=2),
            "training.batch_size_warmup.0.global_batch_size",
            "is no multiple of training.micro",
        ),
    ],
)
def test_rules_between_fields(sections, field, said):
    assert said in rules(**sections)[field].rule


def test_mup_is_refused_where_there_is_none() -> None:
    mup = {"mup": {"base_width": 16}}
    assert rules(model=MODEL | mup) == {}
    (problem,) = rules(model=MODEL | mup, optimizer={"name": "muon"}).values()
    assert problem.field == "optimizer.name"
    assert "they are those of Adam" in problem.rule
    assert problem.fix == "Take adamw, adamw_l2sp, or leave model.mup out."
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16}
    gemma = sizes | {"family": "gemma3", "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 256}
    (problem,) = rules(model=gemma | mup).values()
    assert problem.field == "model.mup"
    assert problem.fix == "Families that do: gpt, llama."


def test_a_constant_schedule_may_warm_up_past_the_end():
    assert rules(schedule={"name": "constant", "warmup_steps": 11}) == {}


TOKENS = {"tokens": 10 * 8 * 128, "global_batch_size": 8}


def test_a_warmup_longer_than_the_tokens_is_asked_for_apart():
    """A run that resumes with another batch size may have taken more steps than it would have from its start."""
    config = pretrain(training=TOKENS, schedule={"warmup_steps": 11})
    assert list(validate(config)) == []
    assert "is longer than the run (training.tokens come to 10 steps)" in warmup_issue(config).rule
    assert warmup_issue(config, Progress(11, 44)) is None, "it is over"
    assert warmup_issue(config, Progress(6, 24)) is None, "six small steps, and seven to come"
    assert warmup_issue(pretrain(training=TOKENS, schedule={"warmup_steps": 10})) is None


def test_nothing_is_wrong_with_a_good_run():
    assert rules() == {}


def test_the_fix_is_the_nearest_divisor():
    fix = rules(training={"steps": 1, "global_batch_size": 8, "micro_batch_size": 5})["training.micro_batch_size"].fix
    assert fix == "Try 4."


SOURCES = [{"path": "a"}, {"path": "b/"}]


def data(**changes):
    return {"data": {"sequence_length": 128, "train": SOURCES} | changes}


@pytest.mark.parametrize(
    ("changes", "field", "rule"),
    [
        ({"train": [{"path": "a", "weight": 0.0}]}, "data.train", "every source has weight 0"),
        ({"phases": [{"from_sample": 5}, {"from_sample": 5}]}, "data.phases.1.from_sample", "is not after"),
        ({"phases": [{"from_sample": 5, "weights": [1.0]}]}, "data.phases.0.weights", "must be 2 weights"),
        ({"phases": [{"from_sample": 5, "weights": [0.0, 0.0]}]}, "data.phases.0.weights", "not all 0"),
        ({"phases": [{"from_sample": 5, "sequence_length": 100}]}, "data.phases.0.sequence_length", "does not divide"),
        (
            {"quarantine": [{"path": "c", "block": 1, "from_sample": 0}]},
            "data.quarantine.0.path",
            "is not a source of data.train (a, b)",
        ),
        ({"validation": [{"path": "v", "format": "webdataset"}]}, "data.validation.0.format", "must be prepared"),
    ],
)
def test_rules_of_the_data(changes, field, rule):
    found = rules(**data(**changes))
    assert rule in found[field].rule
    assert len(found) == 1


def test_phases_and_quarantine_that_go_together():
    stages = [{"from_sample": 0, "sequence_length": 32}, {"from_sample": 9, "weights": [0.0, 1.0]}]
    train = [{"path": "a", "weight": 0.0}, {"path": "b/", "weight": 0.0}]
    first = [{"from_sample": 0, "weights": [1.0, 1.0]}]
    quarantine = [{"path": "b", "block": 1, "from_sample": 0}]
    assert rules(**data(phases=stages, quarantine=quarantine)) == {}
    assert rules(**data(train=train, phases=first)) == {}


def test_rules_of_other_peoples_tar_files():
    foreign = {"path": "a.tar", "format": "webdataset"}
    pipe = {"path": "pipe:cat a.tar", "format": "webdataset"}
    tokenizer = {"tokenizer": {"path": "t"}}
    assert rules(**data(train=[foreign]), **tokenizer) == {}
    assert rules(**data(train=[foreign]))["tokenizer"].rule == "webdataset sources hold text"
    assert "cannot be mixed" in rules(**data(train=[foreign, SOURCES[0]]), **tokenizer)["data.train.1.format"].rule
    assert "allow_pipe" in rules(**data(train=[pipe]), **tokenizer)["data.train.0.path"].rule
    assert rules(**data(train=[pipe], allow_pipe=True), **tokenizer) == {}
    staged = rules(**data(train=[foreign], phases=[{"from_sample": 1}]), **tokenizer)
    assert staged["data.phases"].rule == "needs prepared data"
