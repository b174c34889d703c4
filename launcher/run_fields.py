"""What differs between two configurations of a run, and what a resume makes of it: base/section.py, `Resume`."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from megatrain.base.section import Resume
from megatrain.config import Config


def resume_rule(config: Config, field: str) -> Resume:
    """Of a field by its dotted name, such as "training.steps".

    Raises:
        KeyError: neither the field nor a section around it has a mark.
    """
    found: Resume | None = None
    section: Any = config
    for part in field.split("."):
        if not isinstance(section, BaseModel) or part not in type(section).model_fields:
            break
        marks = type(section).model_fields[part].metadata
        found = next((mark for mark in marks if isinstance(mark, Resume)), found)
        section = getattr(section, part)
    if found is None:
        raise KeyError(field)
    return found


def differences(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """Every field whose value differs, by its dotted name: (before, now); None where it has none."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def _flat(config: Config) -> Iterator[tuple[str, Any]]:
    """Every value of a configuration under its dotted name; a list is one value."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, below in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, below)
        else:
            yield prefix, value

    return walk("", config.model_dump(mode="json", exclude_none=True))
