"""Mistakes, by the thousand: no traceback, and the field is named. MEGATRAIN_MUTATIONS=10000 makes it many more."""

import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.planning.plan import make_plan
from launcher.preflight import checks
from megatrain.base.errors import MegatrainError
from megatrain.config import FinetuneConfig, PretrainConfig
from megatrain.config.file import parse_config
from tests.launcher.conftest import write_data
from tests.launcher.mutations import REAL_MISTAKES, RIGHT, mutated_texts, mutated_trees

MUTATIONS = int(os.environ.get("MEGATRAIN_MUTATIONS", "600"))
SECTIONS = {*PretrainConfig.model_fields, *FinetuneConfig.model_fields}
FIELDS = {  # every name that a configuration knows
    name
    for kind in (PretrainConfig, FinetuneConfig)
    for section in kind.model_fields.values()
    if hasattr(section.annotation, "model_fields")
    for name in section.annotation.model_fields
}
NAMED = re.compile(rf"\b({'|'.join(sorted(SECTIONS | FIELDS))})\b")
PLACED = re.compile(r"^run\.yaml:\d+: |^command line: ")


def complaints(text, overrides=()):
    """What is said about a file, from reading it to preflight; nothing when it may start."""
    try:
        config = parse_config(text, name="run.yaml", overrides=overrides)
        findings = checks.check(config, make_plan(config).chosen)
    except MegatrainError as error:
        return str(error).splitlines()
    return [finding.text for finding in findings if finding.level == "error"]


def test_the_file_that_is_mutated_is_right(here):
    write_data(here / "data/train")
    assert complaints(RIGHT) == []


@pytest.mark.parametrize(("mistake", "field"), REAL_MISTAKES, ids=[mistake for mistake, _ in REAL_MISTAKES])
def test_a_real_mistake_names_its_field(here, mistake, field):
    write_data(here / "data/train")
    said = complaints(RIGHT, mistake.split(" "))
    assert any(field in line for line in said), said


@settings(
    max_examples=MUTATIONS,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(text=st.one_of(mutated_trees(), mutated_trees(), mutated_texts()))
def test_no_traceback_and_the_field_is_named(here, text):
    for line in complaints(text):
        assert "Traceback" not in line
        assert NAMED.search(line) or PLACED.search(line) or line.startswith("nearest miss: "), line
