"""Validation data as a list, or as a mapping from names to lists."""

import pytest

from megatrain.base.errors import ConfigError
from megatrain.config.file import dump_config, parse_config
from megatrain.config.validation_sets import field_of_set, metric_of_set

FINETUNE = """
run: {name: r}
model: {num_hidden_layers: 2, hidden_size: 24, num_attention_heads: 2, intermediate_size: 32}
finetune: {base: x, train: [a], validation: VALUE}
training: {steps: 3, global_batch_size: 2}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 1}
"""
PRETRAIN = """
run: {name: r}
model: {num_hidden_layers: 2, hidden_size: 24, num_attention_heads: 2, intermediate_size: 32}
data: {sequence_length: 48, train: [{path: a}], validation: VALUE}
training: {steps: 3, global_batch_size: 2}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 1}
"""


@pytest.mark.parametrize(
    ("value", "sets"),
    [("[a, b]", {"": ("a", "b")}), ("[]", {}), ("{web: [a], code: [b, c]}", {"web": ("a",), "code": ("b", "c")})],
)
def test_both_forms_are_kept(value: str, sets: dict[str, tuple[str, ...]]) -> None:
    config = parse_config(FINETUNE.replace("VALUE", value))
    assert config.finetune.validation_sets == sets
    assert parse_config(dump_config(config)) == config


def test_sources_have_both_forms() -> None:
    config = parse_config(PRETRAIN.replace("VALUE", "{web: [{path: a}], code: [{path: b}, {path: c}]}"))
    paths = {name: [source.path for source in sources] for name, sources in config.data.validation_sets.items()}
    assert paths == {"web": ["a"], "code": ["b", "c"]}
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize(
    ("text", "value", "message"),
    [
        (FINETUNE, "{web: []}", "finetune.validation.web: tuple should have at least 1 item"),
        (FINETUNE, "{web: [3]}", "finetune.validation.web.0: 3: must be a valid string"),
        (FINETUNE, "[3]", "finetune.validation.0: 3: must be a valid string"),
        (FINETUNE, "{train: [a]}", "finetune.validation.train: 'train': cannot be the name of a set"),
        (FINETUNE, "{a/b: [a]}", "finetune.validation.a/b: 'a/b': must be letters, digits"),
        (PRETRAIN, "{web: [{pth: a}]}", "data.validation.web.0.pth: 'a': unknown key. Did you mean path?"),
        (PRETRAIN, "[{pth: a}]", "data.validation.0.pth: 'a': unknown key. Did you mean path?"),
        (PRETRAIN, "{web: [{path: a, format: webdataset}]}", "data.validation.web.0.format: 'webdataset': validation"),
    ],
)
def test_a_mistake_names_its_place(text: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(text.replace("VALUE", value))
    assert message in str(error.value)


def test_names_of_fields_and_metrics() -> None:
    assert [field_of_set("data", name) for name in ("", "web")] == ["data.validation", "data.validation.web"]
    assert [metric_of_set(name, "accuracy") for name in ("", "web")] == ["accuracy", "web/accuracy"]


@pytest.mark.parametrize(
    ("text", "value", "metric", "there"),
    [
        (PRETRAIN, "[{path: a}]", "accuracy", "validation_loss, perplexity, bits_per_byte"),
        (PRETRAIN, "{web: [{path: a}]}", "validation_loss", "web/validation_loss, web/perplexity"),
        (FINETUNE, "[a]", "bleu", "validation_loss, perplexity, bits_per_byte"),
        (FINETUNE, "{x: [a], y: [b]}", "z/perplexity", "x/bits_per_byte, y/validation_loss"),
        (FINETUNE + "task: {name: preference}\n", "[a]", "margin", "validation_reward_margin"),
    ],
)
def test_early_stopping_looks_at_what_is_measured(text: str, value: str, metric: str, there: str) -> None:
    stopping = [f"training.early_stopping={{metric: {metric}}}"]
    with pytest.raises(ConfigError) as error:
        parse_config(text.replace("VALUE", value), overrides=stopping)
    assert f"{metric!r}: is not measured by this task. There are: " in str(error.value)
    assert there in str(error.value)


def test_early_stopping_on_one_of_several_sets() -> None:
    generate = "evaluation.generate={metrics: [rouge]}"
    for metric in ("y/perplexity", "x/rougeL"):
        config = parse_config(
            FINETUNE.replace("VALUE", "{x: [a], y: [b]}"),
            overrides=[f"training.early_stopping={{metric: {metric}}}", generate],
        )
        assert config.training.early_stopping.metric == metric
