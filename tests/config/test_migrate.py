"""Names that older versions gave to fields: refused with the new one in a user's file, read in a run's own."""

import pytest
import yaml

from megatrain.base.errors import ConfigError
from megatrain.config.file import load_own_config, parse_config
from megatrain.config.migrate import RENAMED
from megatrain.tasks.sft.section import SFTSection
from tests.config.test_sections import MODEL

# As the version before the renames wrote it.
OLD_PRETRAIN = {
    "run": {"name": "old"},
    "model": MODEL,
    "data": {
        "sequence_length": 8,
        "train": [{"path": "a", "weight": 1.0}],
        "stages": [{"from_sample": 5, "sequence_length": 4}],
        "shuffle": {"mode": "windowed", "lanes": 64, "window_blocks": 1},
        "maximum_epochs": 3.0,
    },
    "schedule": {"name": "linear", "minimum_ratio": 0.2},
    "training": {"steps": 9, "global_batch_size": 4},
    "checkpoint": {"every_steps": 7, "keep_last": 2},
    "evaluation": {"every_steps": 5},
    "monitor": {"tensorboard": False, "log_every_steps": 3, "hang_seconds": 99},
    "slurm": {"signal_lead_seconds": 60, "restarts_without_progress": 1},
}
OLD_FINETUNE = {
    "run": {"name": "old"},
    "finetune": {
        "base": "b",
        "train": ["a"],
        "maximum_epochs": 4.0,
        "prompt_field": "q",
        "response_field": "r",
        "messages_field": "m",
        "special_tokens": "text",
        "truncation": "drop",
    },
    "training": {"steps": 9, "global_batch_size": 4},
    "schedule": {"name": "constant", "minimum_ratio": 0.1},
}


def test_a_run_of_an_older_version_is_read(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(OLD_PRETRAIN), encoding="utf-8")
    config = load_own_config(tmp_path / "config.yaml")
    assert config.data.phases[0].from_sample == 5
    assert (config.data.shuffle.streams, config.data.max_epochs) == (64, 3.0)
    assert (config.schedule.min_lr_ratio, config.checkpoint.interval_steps) == (0.2, 7)
    assert (config.evaluation.interval_steps, config.monitor.log_interval_steps) == (5, 3)
    assert (config.monitor.hang_timeout_seconds, config.slurm.signal_before_limit_seconds) == (99, 60)
    assert config.slurm.max_restarts_without_progress == 1
    assert (config.model.family, config.monitor.sinks) == ("llama", ())


def test_a_fine_tuning_of_an_older_version_is_read(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(OLD_FINETUNE), encoding="utf-8")
    config = load_own_config(tmp_path / "config.yaml")
    assert (config.finetune.max_epochs, config.schedule.name) == (4.0, "constant")
    assert config.task == SFTSection(
        prompt_field="q",
        response_field="r",
        messages_field="m",
        special_tokens="text",
        truncation="drop",
        train_on="last_turn",
    )


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_in_a_file_is_refused_with_the_new_one(old) -> None:
    text = yaml.safe_dump(OLD_FINETUNE if old.startswith("finetune") else OLD_PRETRAIN, sort_keys=False)
    with pytest.raises(ConfigError) as refused:
        parse_config(text, name="run.yaml")
    (line,) = [line for line in str(refused.value).splitlines() if f" {old}:" in line]
    section, key = old.split(".")[0], old.rpartition(".")[2]
    lines = text.splitlines()
    number = next(n for n in range(lines.index(f"{section}:"), len(lines)) if lines[n].strip().startswith(f"{key}:"))
    assert line.startswith(f"run.yaml:{number + 1}: ")
    assert f"has another name now. Write {RENAMED[old]}." in line
