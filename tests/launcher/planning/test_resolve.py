"""What a configuration takes from other files."""

import json
import shutil

import pytest

from launcher.planning.plan import make_plan
from launcher.planning.resolve import complete_model
from launcher.runs.prepare import prepare_run
from megatrain.base.errors import ConfigError, DataError
from megatrain.config import FinetuneConfig
from megatrain.config.file import dump_config, parse_config
from megatrain.huggingface.config_json import config_json
from megatrain.run.directory import RunDir
from tests.decided import DECIDED
from tests.launcher.conftest import write_data, write_tokenizer

FINETUNE = """
run: {name: tuned}
finetune: {base: runs/tiny, train: [train.jsonl]}
training: {steps: 5, global_batch_size: 4}
"""


def test_the_vocabulary_comes_from_the_first_source_rounded_up(tiny, here):
    write_data(here / "data/train", vocab_size=500)
    assert complete_model(tiny("model.vocab_size=auto")).model.vocab_size == 512


@pytest.mark.parametrize(
    "model", [{"vocab": {"a": 0, "b": 640}}, {"vocab": [["a", 0.0]] * 641}], ids=["BPE", "Unigram"]
)
def test_the_vocabulary_comes_from_the_tokenizer_while_there_is_no_data(tiny, here, model):
    tokenizer = {"model": model, "added_tokens": [{"id": 3}]}
    (here / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for path in ("tokenizer.json", "."):
        config = tiny("model.vocab_size=auto", f"tokenizer.path={path}")
        assert complete_model(config).model.vocab_size == 768, "641 ids, up to a multiple of 128"


def test_added_tokens_count(tiny, here):
    tokenizer = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 128}]}
    (here / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = tiny("model.vocab_size=auto", "tokenizer.path=tokenizer.json")
    assert complete_model(config).model.vocab_size == 256


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[]",
            "{}",
            '{"model": {"vocab": {}}}',
            '{"model": {"vocab": 3}}',
            "version https://git-lfs",
            "[" * 99_999,
        ),
        *(
            '{"model": {"vocab": {"a": ID}}}'.replace("ID", number)
            for number in ("-1", "NaN", "Infinity", "1e400", "2.5", "1" * 5000)
        ),
        *(
            '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": ID}]}'.replace("ID", number)
            for number in ("-1", "NaN")
        ),
    ],
    ids=lambda text: text[:60],
)
def test_a_file_that_is_no_tokenizer(tiny, here, text):
    (here / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer.path: tokenizer.json: is not (a tokenizer|JSON)"):
        complete_model(tiny("model.vocab_size=auto", "tokenizer.path=tokenizer.json"))


def test_nothing_tells_the_vocabulary(tiny, here):
    with pytest.raises(DataError, match=r"data/train: is not a prepared folder"):
        complete_model(tiny("model.vocab_size=auto"))
    with pytest.raises(DataError, match=r"tokenizer.json: cannot be read.*model.vocab_size"):
        complete_model(tiny("model.vocab_size=auto", "tokenizer.path=tokenizer.json"))


@pytest.mark.parametrize("base", ["runs/tiny", "runs/tiny/checkpoints/step-00000010"])
def test_a_fine_tuning_takes_model_tokenizer_and_length_from_its_base(tiny, here, base):
    before = tiny("tokenizer.path=tokenizer", *DECIDED)
    run = RunDir("runs/tiny")
    run.step(10).mkdir(parents=True)
    run.config.write_text(dump_config(before), encoding="utf-8")
    config = complete_model(parse_config(FINETUNE, overrides=[f"finetune.base={base}"]))
    assert isinstance(config, FinetuneConfig)
    assert (config.model, config.tokenizer, config.sequence_length) == (before.model, before.tokenizer, 128)
    shorter = complete_model(parse_config(FINETUNE, overrides=["finetune.sequence_length=64"]))
    assert shorter.sequence_length == 64


def test_a_fine_tuning_of_sequences_too_short_to_learn_from(tiny, here):
    run = RunDir("runs/tiny")
    run.path.mkdir(parents=True)
    run.config.write_text(dump_config(tiny("tokenizer.path=tokenizer", *DECIDED)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"finetune.sequence_length: 1: must be at least 2"):
        complete_model(parse_config(FINETUNE, overrides=["finetune.sequence_length=1"]))


def test_a_fine_tuning_takes_model_tokenizer_and_length_from_a_pretrained_model(tiny, here):
    before = tiny().model
    folder = here / "llama"
    folder.mkdir()
    content = config_json(before, max_position_embeddings=131072)
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer: (llama|runs/tiny) has none"):
        complete_model(parse_config(FINETUNE, overrides=["finetune.base=llama"]))
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    config = complete_model(parse_config(FINETUNE, overrides=["finetune.base=llama"]))
    assert config.model == before.model_copy(update={"head_dim": 16})
    assert (config.tokenizer.path, config.sequence_length) == ("llama", 4096)


def test_a_resumed_fine_tuning_needs_no_base(tiny, here):
    write_tokenizer(here / "tok", "<s>")
    before = tiny("tokenizer.path=tok", "run.name=tuned")
    own = parse_config(FINETUNE, overrides=["finetune.sequence_length=64", "tokenizer.path=tok"])
    run = RunDir("runs/tuned")
    run.path.mkdir(parents=True)
    run.config.write_text(dump_config(own.model_copy(update={"model": before.model})), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"finetune.base: 'runs/tiny': is not a run"):
        complete_model(parse_config(FINETUNE))
    run.step(5).mkdir(parents=True)
    (run.step(5) / "MANIFEST.json").touch()
    config = complete_model(parse_config(FINETUNE))
    assert (config.model, config.tokenizer.path, config.sequence_length) == (before.model, "tok", 64)


def test_a_base_run_gives_its_own_copy_of_its_tokenizer(tiny, here):
    write_tokenizer(here / "tok", "<s>")
    run = prepare_run(tiny("tokenizer.path=tok"), make_plan(tiny()).chosen)
    shutil.move(run.path, here / "archived")
    shutil.rmtree("tok")
    config = complete_model(parse_config(FINETUNE, overrides=["finetune.base=archived"]))
    assert config.tokenizer.path == "archived/tokenizer"


def test_a_pretrained_model_with_a_sentencepiece_model_only(tiny, here):
    (here / "llama").mkdir()
    content = config_json(tiny().model, max_position_embeddings=64)
    (here / "llama/config.json").write_text(json.dumps(content), encoding="utf-8")
    (here / "llama/tokenizer.model").touch()
    config = complete_model(parse_config(FINETUNE, overrides=["finetune.base=llama"]))
    assert config.tokenizer.path == "llama/tokenizer.model"


def test_a_base_that_is_no_run(here):
    with pytest.raises(ConfigError, match=r"finetune.base: 'runs/tiny': is not a run"):
        complete_model(parse_config(FINETUNE))


def test_a_base_without_a_tokenizer(tiny, here):
    run = RunDir("runs/tiny")
    run.path.mkdir(parents=True)
    run.config.write_text(dump_config(tiny(*DECIDED)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer: (llama|runs/tiny) has none"):
        complete_model(parse_config(FINETUNE))
