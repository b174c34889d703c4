"""A fine-tuning's examples are encoded by the launcher, and mapped by its ranks."""

import json
import os

import numpy as np
import pytest

from launcher.planning.plan import make_plan
from launcher.runs.prepare import prepare_run
from megatrain.data.examples.cache import MappedRows
from megatrain.run.inputs import load_run
from megatrain.tasks.base import DataShare
from megatrain.tasks.sft.task import SFT
from tests.launcher.preflight.test_examples import finetune as finetune


@pytest.fixture
def prepared(finetune, here):
    (here / "b.jsonl").write_text(json.dumps({"prompt": "where", "response": " here"}) + "\n")
    config = finetune("finetune.validation=[b.jsonl]")
    return lambda: prepare_run(config, make_plan(config).chosen)


def test_ranks_map_what_the_launcher_has_encoded_until_a_file_changes(prepared, here) -> None:
    run = prepared()
    kept = {folder.name for folder in run.examples.iterdir()}
    assert len(kept) == 2, "of training, and of the validation"
    mapped = SFT(load_run(run))
    assert isinstance(mapped._training.rows, MappedRows)

    os.utime(here / "a.jsonl", ns=(1, 1))
    read = SFT(load_run(run))
    assert not isinstance(read._training.rows, MappedRows)
    share = DataShare(rank=0, size=1)
    one, other = (task.loader(share).next().micro_batches for task in (mapped, read))
    assert all(np.array_equal(a.input_ids, b.input_ids) and np.array_equal(a.labels, b.labels)
               for a, b in zip(one, other, strict=True))  # fmt: skip
    assert mapped.loader(share).state_dict() == read.loader(share).state_dict()

    prepared()
    now = {folder.name for folder in run.examples.iterdir()}
    assert len(now) == 2
    assert len(now & kept) == 1, "the validation's; those of the old file are gone"
    assert isinstance(SFT(load_run(run))._training.rows, MappedRows)
