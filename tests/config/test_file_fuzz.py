"""Whatever a configuration holds, it is read, or refused with a message."""

import string

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatrain.base.errors import ConfigError
from megatrain.config.file import parse_config
from tests.config.test_file import GOOD

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(string.printable, max_size=12),
    st.sampled_from(["auto", "none", "[]", "{}", "1e400", "0x10", "12:00:00", "2024-01-01", "~", "<<", "null"]),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=6), below, max_size=3),
    max_leaves=4,
)


def read_or_refused(text, overrides=()) -> bool:
    """Raises what is neither; where it is refused, each line names the file or the command line."""
    try:
        parse_config(text, name="f.yaml", overrides=overrides)
    except ConfigError as error:
        lines = str(error).splitlines()
        return bool(lines) and all(line.startswith(("f.yaml", "command line")) for line in lines)
    return True


def _paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield from _paths(below, (*path, key))


_DOCUMENT = yaml.safe_load(GOOD)
_QUICK = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def _mutated(value, path, new):
    if not path:
        return new
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = _mutated(value[path[0]], path[1:], new)
    return copy


@_QUICK
@given(st.sampled_from(list(_paths(_DOCUMENT))), _VALUES)
def test_any_value_anywhere(path, value):
    assert read_or_refused(yaml.safe_dump(_mutated(_DOCUMENT, path, value), allow_unicode=True))


@_QUICK
@given(st.integers(0, len(GOOD)), st.integers(0, 12), st.text(string.printable, max_size=6))
def test_any_edit_of_the_text(start, length, inserted):
    assert read_or_refused(GOOD[:start] + inserted + GOOD[start + length :])


@_QUICK
@given(
    st.sampled_from(["run", "training.steps", "data.train.0", "data.train", "model.head_dim", "slurm.extra.x", "a.b"]),
    st.text(string.printable, max_size=12),
)
def test_any_override(key, text):
    assert read_or_refused(GOOD, [f"{key}={text}"])
