"""For every test: this machine's cores as they were measured once elsewhere, so that plans are the same everywhere."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.planning.processor import CACHE_VARIABLE, remembered_file

RATES = {"bf16": 435e9, "fp32": 94e9}  # FLOP/s of a Zen 5 core

# before any test module is imported: some plan while tests are collected
os.environ[CACHE_VARIABLE] = tempfile.mkdtemp(prefix="megatrain-tests-")
_file = remembered_file()
assert _file is not None
_file.write_text(json.dumps(RATES), encoding="utf-8")


def pytest_unconfigure() -> None:
    assert _file is not None
    Path(_file).unlink(missing_ok=True)
    Path(_file).parent.rmdir()


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory) -> Callable[..., Path]:
    """See `tests.tokenizer_kinds.write_tokenizer`; the folder is made."""
    from tests.tokenizer_kinds import write_tokenizer

    return lambda kind, **options: write_tokenizer(tmp_path_factory.mktemp(kind), kind, **options)
