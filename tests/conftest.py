"""For every test: the rates of the cores as measured once, so that plans are the same on every machine, one cache of
compiled code, and the same Hypothesis examples every time, however busy the machine is."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from launcher.planning.processor import CACHE_VARIABLE, remembered_file

pytest_plugins = ["tests.side_by_side"]
RATES = {"bf16": 435e9, "fp32": 94e9}  # FLOP/s of a Zen 5 core

settings.register_profile("everywhere", deadline=None, derandomize=True)
settings.load_profile("everywhere")

# Before any test module is imported, for some plan while tests are collected. The processes of `pytest -n` inherit it.
_SHARED = "MEGATRAIN_TESTS_SHARED"
_is_owner = _SHARED not in os.environ
if _is_owner:
    os.environ[_SHARED] = os.environ[CACHE_VARIABLE] = tempfile.mkdtemp(prefix="megatrain-tests-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{os.environ[_SHARED]}/inductor"
    rates_file = remembered_file()
    assert rates_file is not None
    rates_file.write_text(json.dumps(RATES), encoding="utf-8")


def pytest_unconfigure() -> None:
    if _is_owner:
        shutil.rmtree(os.environ[_SHARED], ignore_errors=True)


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory) -> Callable[..., Path]:
    """See `tests.tokenizer_kinds.write_tokenizer`; the folder is made."""
    from tests.tokenizer_kinds import write_tokenizer

    return lambda kind, **options: write_tokenizer(tmp_path_factory.mktemp(kind), kind, **options)
