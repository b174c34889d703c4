"""For every test: this machine's cores as they were measured once elsewhere, so that plans are the same everywhere."""

import json
import os
import tempfile
from pathlib import Path

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
