"""Reading a configuration: every mistake at once, each at its line, and never a traceback."""

import os
import time

import pytest

from launcher.installation import shipped
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import has_control_characters
from megatrain.config import FinetuneConfig, PretrainConfig
from megatrain.config.file import dump_config, load_config, parse_config

GOOD = """\
run: {name: x}
model:
  num_hidden_layers: 2
  hidden_size: 64
  num_attention_heads: 4
  intermediate_size: 128
data:
  sequence_length: 128
  train:
    - {path: a, weight: 0.9}
    - {path: b}
optimizer:
  learning_rate: 3e-4
training:
  steps: 10
  global_batch_size: 8
"""


def mistakes(text, *overrides):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, name="f.yaml", overrides=overrides)
    return str(caught.value).splitlines()


def replaced(before, after):
    assert before in GOOD
    return GOOD.replace(before, after)


def test_a_good_file():
    config = parse_config(GOOD)
    assert isinstance(config, PretrainConfig)
    assert [source.weight for source in config.data.train] == [0.9, 1.0]


@pytest.mark.parametrize("text", ["3e-4", "3.0e-4", "3E-4", "0.0003", ".0003", "3_0e-5", "+3e-4"])
def test_numbers_as_people_write_them(text):
    assert parse_config(replaced("3e-4", text)).optimizer.learning_rate == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "hidden_size: 64",
            "hiden_size: 64",
            [
                "f.yaml:2: model.hidden_size: is required.",
                "f.yaml:4: model.hiden_size: 64: unknown key. Did you mean hidden_size?",
            ],
        ),
        ("steps: 10", "steps: ten", ["f.yaml:15: training.steps: 'ten': must be a valid integer."]),
        ("steps: 10", "steps: -1", ["f.yaml:15: training.steps: -1: must be greater than or equal to 1."]),
        (
            "hidden_size: 64",
            "hidden_size: 66",
            ["does not divide model.hidden_size (66). Try 3, or set model.head_dim."],
        ),
        ("  steps: 10\n", "", ["f.yaml:14: training: give exactly one of tokens and steps."]),
        ("name: x", "name: ../x", ["f.yaml:1: run.name: '../x': must be letters, digits"]),
    ],
)
def test_one_mistake(before, after, expected):
    found = mistakes(replaced(before, after))
    assert len(found) == len(expected)
    for line, part in zip(found, expected, strict=True):
        assert part in line


def test_all_mistakes_at_once_in_the_order_of_the_file():
    text = GOOD.replace("name: x", "name: x, sed: 3").replace("64", "sixty").replace("path: b", "pth: b")
    text += "parallel: {zero_stage: 4, tensor_parallel: 0}\n"
    found = mistakes(text)
    lines = [int(line.split(":")[1]) for line in found]
    assert lines == sorted(lines)
    told = "\n".join(found)
    for field in (
        "run.sed",
        "model.hidden_size",
        "data.train.1.pth",
        "data.train.1.path",
        "parallel.zero_stage",
        "parallel.tensor_parallel",
    ):
        assert field in told
    assert len(found) == 6


def test_a_key_given_twice_names_both_lines():
    (line,) = mistakes(GOOD + "  steps: 20\n")
    assert line.startswith("f.yaml:17: training.steps: 'steps': given twice (also on line 15)")


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "\t", "a: 'x", "a: &x *y", "!!python/object:os.system {}", "!x y", "---\n---\n"]
)
def test_what_is_not_yaml_is_told_with_its_line(text):
    for line in mistakes(text):
        assert line.startswith("f.yaml")


@pytest.mark.parametrize("text", ["- a", "hello", "3", "true"])
def test_what_is_no_mapping(text):
    assert mistakes(text) == ["f.yaml:1: must be a mapping of sections, such as `run:` and `model:`"]


@pytest.mark.parametrize("value", ["!!python/object/apply:os.getcwd []", "!!python/name:os.getcwd ", "!!int x", "!x y"])
def test_tags_are_refused(value):
    assert "YAML tags are not used here" in "\n".join(mistakes(replaced("name: x", f"name: {value}")))


@pytest.mark.parametrize("text", ["12:00:00", "2024-13-45", "0x10", "yes", "2.4.1", "1e", "=", "<<", "1" * 5000])
def test_text_that_other_readers_take_for_something_else(text):
    assert parse_config(GOOD, overrides=[f"slurm.account={text}"]).slurm.account == text


@pytest.mark.parametrize("text", ["3e-4", "12:00:00", "true", "007", "1_000", "~", "null", ".inf", "a: b", "ü", " x "])
def test_text_is_written_so_that_it_is_read_back(text):
    config = parse_config(GOOD)
    config = config.model_copy(update={"run": config.run.model_copy(update={"directory": text})})
    assert parse_config(dump_config(config)) == config


def test_a_text_without_an_end():
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for name, below in zip("bcdefghij", "abcdefghi", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]\n"
    assert "deeper or larger" in mistakes(bomb)[-1]
    assert "deeper or larger" in mistakes("a: &a [*a]")[-1]
    assert "deeper or larger" in mistakes("a: " + "[" * 100_000)[-1]


def test_a_large_file_is_refused_at_once(tmp_path):
    began = time.monotonic()
    assert "deeper or larger" in mistakes("a: [" + "{}, " * 250_000 + "]")[-1]
    (tmp_path / "large.yaml").write_text("a: [" + "{}, " * 500_000 + "]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"large.yaml: has 2,000,0\d\d bytes; at most"):
        load_config(tmp_path / "large.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="named pipe"):
        load_config(tmp_path / "pipe.yaml")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ('run.directory="a\\0b"', "run.directory"),
        ('data.train.0.path="a\\e[31mb"', "data.train.0.path"),
        ('slurm.partition="a\\n"', "slurm.partition"),
        ("data.train.0.path=a\udcff", "data.train.0.path"),
        ("slurm.extra.comment=\u202egnp", "slurm.extra.comment"),
        ('slurm.extra={"a\\eb": x}', "slurm.extra"),
    ],
)
def test_control_characters_are_refused_and_not_shown(override, field):
    said = "\n".join(mistakes(GOOD, override))
    assert f"command line: {field}:" in said
    assert "control characters" in said
    assert not has_control_characters(said.replace("\n", ""))


@pytest.mark.parametrize("value", ["x" * 3501, "a/" + "b" * 256 + "/c"])
def test_a_path_that_no_file_system_takes(value):
    assert mistakes(GOOD, f"run.directory={value}")[0].startswith("command line: run.directory: ")
    assert len(mistakes(GOOD, f"run.directory={value}")[0]) < 400
    assert parse_config(GOOD, overrides=[f"data.train.0.path=https://host/{'b' * 300}"])


@pytest.mark.parametrize(
    "override",
    [
        "data.train.0.path=http://me:S3CRET@host/data",
        "data.train=http://me:S3CRET@host/data",
        "data.train.0.path=https://host/x?X-Amz-Signature=S3CRET",
        "slurm.extra={comment: 'https://me:S3CRET@host'}",
        "run.name=https://me:S3CRET@host",
        "http://me:S3CRET@host=3",
    ],
)
def test_a_password_is_refused_and_not_shown(override):
    said = "\n".join(mistakes(GOOD, override))
    assert "S3CRET" not in said
    if not override.startswith("http"):
        assert "the environment" in said


@pytest.mark.parametrize(
    "override",
    [
        *(
            "data.reading.threads=100000",
            "monitor.hang_timeout_seconds=1e15",
            "data.train.0.weight=1e308",
            "cluster.nodes=1e9",
        ),
        *("data.phases=[{from_sample: 0, weights: [1e308, 1e308]}]", "data.reading.attempts=1000"),
        *("data.reading.timeout_seconds=1e300", "cluster.peak_tflops=1e-300", "data.shuffle.streams=1e15"),
        *(
            "slurm.signal_before_limit_seconds=100000",
            "slurm.time=١٢:00:00",
            f"slurm.time={'9' * 5000}",
            "slurm.cpus_per_task=1e9",
        ),
        *(
            "model.num_hidden_layers=1e9",
            "data.max_epochs=1e-300",
            "data.transform={function: 'a:b', workers: 1e6}",
        ),
    ],
)
def test_numbers_that_do_not_start_are_refused_by_name(override):
    (line, *_) = mistakes(GOOD, override)
    assert line.startswith(f"command line: {override.partition('=')[0]}")


@pytest.mark.parametrize("key", ["data.²=3", f"data.train.{'9' * 5000}.path=x", "data.train.١.path=x"])
def test_odd_digits_in_a_key(key):
    assert mistakes(GOOD, key)[0].startswith("command line: ")


def test_overrides_win_over_the_file_and_their_mistakes_are_theirs():
    config = parse_config(
        GOOD, overrides=["training.steps=7", "data.train.1.weight=2.0", "run.name=y", "slurm.partition=gpu"]
    )
    assert (config.training.steps, config.data.train[1].weight, config.run.name) == (7, 2.0, "y")
    assert config.slurm.partition == "gpu"
    assert parse_config(GOOD, overrides=["slurm.time=12:00:00"]).slurm.time == "12:00:00"
    assert parse_config(GOOD, overrides=["slurm.time=30"]).slurm.time == "30"
    assert mistakes(GOOD, "training.stps=7") == ["command line: training.stps: 7: unknown key. Did you mean steps?"]
    assert mistakes(GOOD, "modle.hidden_size=7") == ["command line: modle: unknown key. Did you mean model?"]
    assert mistakes(GOOD, "training.steps=x") == ["command line: training.steps: 'x': must be a valid integer."]


def test_a_length_on_the_command_line_replaces_the_files():
    assert parse_config(GOOD, overrides=["training.tokens=2.5e6"]).training.steps is None
    with pytest.raises(ConfigError, match="exactly one"):
        parse_config(replaced("steps: 10", "steps: 10\n  tokens: 5"))


@pytest.mark.parametrize(
    "override",
    [
        "steps",
        "=3",
        "training.=3",
        "training..steps=3",
        "data.train.5.path=x",
        "data.train.x=3",
        "run.name.x=1",
        "1.2=3",
    ],
)
def test_an_override_that_is_none(override):
    for line in mistakes(GOOD, override):
        assert line.startswith(("command line", "f.yaml"))


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.yaml: cannot be read: No such file"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.yaml: is not UTF-8"):
        load_config(tmp_path / "binary.yaml")


def test_a_finetune_section_makes_a_fine_tuning():
    text = "{run: {name: x}, finetune: {base: b, train: [t]}, training: {steps: 1, global_batch_size: 1}}"
    assert isinstance(parse_config(text), FinetuneConfig)


@pytest.mark.parametrize(
    "name", ["llama-125m", "llama-1b", "llama-7b", "sequence-classification", "token-classification"]
)
def test_examples_are_read_and_written_back_equal(name):
    config = load_config(shipped(f"configs/{name}.yaml"))
    assert parse_config(dump_config(config)) == config


# Mutations. Whatever is done to a file, it is read, or refused with at least one line that says where.
