from typing import get_type_hints

import pytest

from megatrain.base.errors import ConfigError
from megatrain.base.registry import load_object
from megatrain.config import builtin  # noqa: F401 - registers the tasks
from megatrain.config.file import parse_config
from megatrain.tasks.base import Task
from megatrain.tasks.registry import TASKS
from tests.config.test_chosen import RUN


@pytest.mark.parametrize("name", TASKS.names())
def test_a_task_is_what_its_spec_says(name: str) -> None:
    spec = TASKS.get(name)
    task = load_object(spec.task)
    made = task if isinstance(task, type) else get_type_hints(task)["return"]
    assert issubclass(made, Task)
    assert spec.section().name == name
    assert all(load_object(path) for path in (spec.read_examples, spec.check_rows) if path)


def test_a_pretraining_cannot_be_given_a_task_that_fine_tunes() -> None:
    assert parse_config(RUN).task.name == "pretrain_lm"
    with pytest.raises(ConfigError, match=r"task.name: 'sft': must be masked_lm or pretrain_lm"):
        parse_config(RUN, overrides=["task.name=sft"])
