"""What trains a part of a model is refused where it cannot be, by its field and with what to do."""

import pytest

from megatrain.base.errors import ConfigError
from megatrain.config.file import dump_config, parse_config

CONFIG = """
run: {name: tuned}
finetune: {base: b, train: [t.jsonl], adapter: {rank: 8}}
model: {num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 4, intermediate_size: 64, vocab_size: 128}
training: {steps: 1, global_batch_size: 4}
"""


def test_an_adapter_is_read_and_written_back() -> None:
    config = parse_config(CONFIG, overrides=["finetune.adapter.target_modules=attention"])
    assert config.finetune.adapter.target_modules == ("attention",)
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["finetune.adapter.name=lorra"],
            "finetune.adapter.name: 'lorra': must be lora or dora or houlsby. Did you mean lora?",
        ),
        (["finetune.adapter.ranks=4"], "finetune.adapter.ranks: 4: unknown key. Did you mean rank?"),
        (["finetune.train_layers=1"], "finetune.train_layers: 1: an adapter trains no layers of the base"),
        (["optimizer.name=muon"], "optimizer.name: 'muon': updates whole hidden matrices, and has not been shown"),
        (["training.precision=fp8"], "training.precision: 'fp8': layers that multiply in fp8 train their own weights"),
        (
            ["finetune.adapter.rank=33"],
            "rank: 33: is larger than the shorter side of blocks.N.attention.query.weight (32 × 32)",
        ),
        (
            ["finetune.adapter.target_modules=[c_attn]"],
            "'c_attn': is no linear layer of the base's blocks. There are: ",
        ),
        (["model.train_layers=1"], "model.train_layers: 1: is what finetune.train_layers says. Leave it out."),
        (
            ["finetune.adapter=null", "finetune.train_layers=3"],
            "finetune.train_layers: 3: is more than the base has (2). At most 2.",
        ),
    ],
)
def test_what_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(CONFIG, overrides=overrides)
    assert said in str(caught.value)
