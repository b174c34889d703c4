"""The base class of every section of a configuration; what a resume may change of it; sections picked by name."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails

from megatrain.base.registry import Registry


class Section(BaseModel):
    # built when it is first validated: a command uses few of them, and a parent holds what its parts need
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class Resume(Enum):
    """What another value of a field means for a run that has started. The innermost mark around a field counts."""

    FIXED = "weights and the position in the data rest on it: another value would be another run, and is refused"
    REPORTED = "what is trained from here on, or when it is looked at and kept: may change, and a start says so"
    FREE = "where and how the same numbers are computed: may change"


FIXED, REPORTED, FREE = Resume.FIXED, Resume.REPORTED, Resume.FREE


@dataclass(frozen=True, slots=True)
class Choice:
    """A section whose class is picked from a registry by the value of one of its keys."""

    registry: Registry[Any]
    key: str
    default: str
    only: Callable[[Any], bool] = lambda entry: True  # which entries of the registry can be picked here

    def names(self) -> list[str]:
        return [name for name, entry in self.registry if self.only(entry)]

    def section(self, data: Any) -> type[Section]:
        """Of plain data; of the default where it names none that is known."""
        name = data.get(self.key, self.default) if isinstance(data, dict) else getattr(data, self.key, self.default)
        entry = self.registry.get(name if isinstance(name, str) and name in self.names() else self.default)
        section: type[Section] = entry.section
        return section

    def validate(self, data: Any) -> Section:
        if isinstance(data, Section):
            return data
        name = data.get(self.key, self.default) if isinstance(data, dict) else self.default
        if not isinstance(name, str) or name not in self.names():
            known = " or ".join(f"'{one}'" for one in self.names())
            detail = InitErrorDetails(type="literal_error", loc=(self.key,), input=name, ctx={"expected": known})
            raise ValidationError.from_exception_data(self.registry.kind, [detail])
        return self.section(data).model_validate(data)


def chosen(
    base: type[Section],
    registry: Registry[Any],
    *,
    key: str,
    default: str,
    only: Callable[[Any], bool] = lambda entry: True,
) -> Any:
    """The type of a field that holds any registered section that `only` admits; `base` is what they have in common."""
    choice = Choice(registry, key, default, only)
    validator: Callable[[Any], Section] = choice.validate
    return Annotated[SerializeAsAny[base], PlainValidator(validator), choice]  # type: ignore[misc, valid-type]
