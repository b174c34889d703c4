"""A base that cannot be started from, and a tokenizer that does not go with it, are found before a GPU is held."""

import json

import pytest
import torch
from safetensors.torch import save_file

from launcher.planning.resolve import complete_model
from launcher.preflight.base_model import check_base
from launcher.preflight.own_copies import check_own_copies
from launcher.runs.inputs import keep_inputs
from megatrain.base.errors import ConfigError, ExitCode
from megatrain.config.file import dump_config, parse_config
from megatrain.huggingface.config_json import config_json
from megatrain.huggingface.names import shapes, their_name
from megatrain.run.directory import RunDir
from tests.decided import DECIDED
from tests.launcher.conftest import write_tokenizer

FINETUNE = """
run: {name: tuned}
finetune: {base: llama, train: [train.jsonl]}
training: {steps: 5, global_batch_size: 4}
"""


@pytest.fixture
def model(tiny):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 4, "num_attention_heads": 2, "head_dim": None}
    return tiny().model.model_copy(update=sizes)


@pytest.fixture
def llama(here, model):
    """A pretrained model of four tokens."""
    write_tokenizer(here / "llama", "<s>", "</s>", eos_token="</s>")
    (here / "llama/config.json").write_text(json.dumps(config_json(model, max_position_embeddings=64)))
    weights = {their_name(name, model): torch.zeros(shape) for name, shape in shapes(model).items()}
    save_file(weights, here / "llama/model.safetensors")
    return here / "llama"


def findings(*overrides: str):
    return list(check_base(complete_model(parse_config(FINETUNE, overrides=overrides))))


def test_a_base_that_will_do(llama):
    assert findings() == []


def test_a_base_without_a_head_is_told(llama, model):
    """It is drawn from the seed."""
    weights = {their_name(name, model): torch.zeros(shape) for name, shape in shapes(model).items()}
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    save_file(bare, llama / "model.safetensors")
    (found,) = findings()
    assert (found.level, found.text) == (
        "note",
        "finetune.base: llama: has no head; drawn from run.seed: lm_head.weight",
    )


def test_an_adapter_would_leave_a_drawn_head_as_it_is(llama, model):
    weights = {their_name(name, model): torch.zeros(shape) for name, shape in shapes(model).items()}
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    save_file(bare, llama / "model.safetensors")
    _, found = findings("finetune.adapter={rank: 4}")
    assert (found.level, found.code) == ("error", ExitCode.USAGE)
    assert "has no head, and finetune.adapter trains none" in found.text
    assert [one.level for one in findings("finetune.train_layers=1")] == ["note"], "which trains the head"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "finetune.adapter={target_modules: w_pack}",
            "target_modules: 'w_pack': is no linear layer of the",
        ),
        ("finetune.adapter={rank: 9}", "finetune.adapter.rank: 9: is larger than the shorter side of blocks.N."),
        ("finetune.train_layers=99", "finetune.train_layers: 99: is more than the base has"),
    ],
)
def test_an_adapter_that_does_not_go_with_the_base(llama, override, said):
    with pytest.raises(ConfigError) as caught:
        findings(override)
    assert said in str(caught.value)


def test_tokens_beyond_the_embedding(llama):
    write_tokenizer(llama, "<s>", "</s>", "<|im_start|>", "<pad>", pad_token="<pad>")
    (found,) = findings()
    assert (found.level, found.code) == ("error", ExitCode.DATA)
    assert "its tokens '<|im_start|>' (4) lie beyond the model's embedding of 4 rows" in found.text


@pytest.mark.parametrize("pad", ["<pad>", {"content": "<pad>"}])
def test_a_padding_token_beyond_the_embedding_does_no_harm(llama, pad):
    write_tokenizer(llama, "<s>", "</s>", "<pad>", pad_token=pad)
    assert findings() == []


def test_another_tokenizer_than_the_bases(llama, here):
    write_tokenizer(here / "other", "</s>", "<s>")
    (found,) = findings("tokenizer.path=other")
    assert "tokenizer.path: other: is not the tokenizer that llama was trained with" in found.text
    assert (found.level, found.code) == ("error", ExitCode.DATA)


def test_the_bases_tokenizer_at_another_place_or_written_anew(llama, here):
    write_tokenizer(here / "other", "<s>", "</s>")
    assert findings("tokenizer.path=other") == []
    content = json.loads((here / "other/tokenizer.json").read_text())
    content["post_processor"] = None
    (here / "other/tokenizer.json").write_text(json.dumps(content, indent=2))
    assert findings("tokenizer.path=other") == []


def test_a_tokenizer_that_adds_to_the_bases(llama, here):
    write_tokenizer(llama, "<s>")
    write_tokenizer(here / "other", "<s>", "<tool>")
    (found,) = findings("tokenizer.path=other")
    assert (found.level, "adds 1 tokens to the base's (llama)" in found.text) == ("warning", True)


def test_of_a_run_its_own_copy_is_what_counts(llama, here, tiny, model):
    base = RunDir("runs/base")
    config = tiny("tokenizer.path=llama", "run.name=base", *DECIDED).model_copy(update={"model": model})
    keep_inputs(base, config)
    base.config.write_text(dump_config(config), encoding="utf-8")
    base.step(1).mkdir(parents=True)
    (base.step(1) / "MANIFEST.json").touch()
    write_tokenizer(llama, "</s>", "<s>")  # another one at the path that the base names
    assert findings("finetune.base=runs/base") == []
    (found,) = findings("finetune.base=runs/base", "tokenizer.path=llama")
    assert "is not the tokenizer that runs/base was trained with (runs/base/tokenizer)" in found.text
    (found,) = check_own_copies(config, base)
    assert (found.level, found.text.partition(" The run resumes")[0]) == (
        "warning",
        "tokenizer.path: llama: is not the tokenizer any more that runs/base began with.",
    )
    (base.tokenizer / "tokenizer.json").write_text("{}")
    (found,) = check_own_copies(config, base)
    assert (found.level, found.code) == ("error", ExitCode.DATA)


def test_what_a_pretrained_model_says_of_itself_must_be_readable(llama):
    (llama / "generation_config.json").write_text("version https://git-lfs")
    (found,) = findings()
    assert "finetune.base: llama/generation_config.json: is not JSON: it is a git-lfs pointer" in found.text
