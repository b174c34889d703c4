"""What can be added to megatrain from outside, by name: model families, optimizers, schedules, tasks, metrics, sinks.

An entry is free of torch, so that the launcher can read it; it names its implementation instead of importing it.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Generic, TypeVar

from megatrain.base.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name, in the order in which they were registered.

    Args:
        kind: what an entry is, in the words of a message: "optimizer".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Raises ConfigError when the name is taken by another entry."""
        if self._entries.setdefault(name, entry) != entry:
            raise ConfigError(f"{self.kind} {name!r} is already registered, as {self._entries[name]!r}")
        return entry

    def get(self, name: str) -> T:
        """Raises ConfigError when there is none of this name, with the names that there are."""
        if name not in self._entries:
            near = get_close_matches(name, self._entries, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(self._entries)}."
            raise ConfigError(f"{self.kind} {name!r} is not known. {hint}")
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[tuple[str, T]]:
        return iter(self._entries.items())


def load_object(path: str) -> Any:
    """The object that "package.module:name" names, imported when it is needed.

    Raises:
        ConfigError: there is no such module, or it has no such name.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise ConfigError(f"{path}: there is no module {error.name}") from None
    except AttributeError:
        raise ConfigError(f"{path}: the module has no {name!r}") from None
