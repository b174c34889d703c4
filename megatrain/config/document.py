"""The YAML of a configuration as plain data, with the line of each value, and `key.sub=value` overrides over it.

Scalars follow YAML 1.2: `3e-4` is a number and `12:00:00` is text, though PyYAML takes them for text and 43200.
Duplicate keys and tags are mistakes, and so is text that a terminal, a path or a log must not hold.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

from megatrain.base.credentials import credentials_in, without_credentials
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import has_control_characters
from megatrain.config.rules import ConfigIssue

COMMAND_LINE = 0  # the "line" of a value that came from an override
_MOST_DEPTH, _MOST_NODES = 20, 10_000  # aliases can make a short text endless
_TOO_LARGE = "is deeper or larger than a configuration can be"
_CREDENTIALS_FIX = (
    "Others read configurations and logs: give it by the environment (AWS_…, FSSPEC_HTTP_…) or a file of yours "
    "(~/.aws, ~/.config/fsspec)."
)

KeyPath = tuple[str | int, ...]

# Two ways to say one thing: an override of one replaces the other, wherever that was given.
_ALTERNATIVES: dict[KeyPath, KeyPath] = {
    ("training", "steps"): ("training", "tokens"),
    ("training", "tokens"): ("training", "steps"),
}


def _number(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return convert(text.replace("_", ""))
        except ValueError:  # thousands of digits
            return text

    return read


# A plain scalar is the first of these that it matches, and else text: YAML 1.2's core schema, with 1_000 for 1000.
_CORE_SCHEMA: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (re.compile(r"~|null|Null|NULL|"), lambda _: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"[-+]?[0-9][0-9_]*"), _number(int)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"), _number(float)),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda text: float(text.replace(".", ""))),
)
_TAGS = ("str", "map", "seq")  # of nodes that BaseLoader composes where the text has no tag


class Dumper(yaml.SafeDumper):
    """Quotes text that would be read back as anything else, by either schema."""


for _pattern, _ in _CORE_SCHEMA[2:4]:
    Dumper.add_implicit_resolver("!number", re.compile(rf"^({_pattern.pattern})$"), list("-+.0123456789"))


class _TooLargeError(yaml.YAMLError):
    """Deeper or larger than a configuration can be."""

    def __init__(self, line: int) -> None:
        self.line = line


class _Loader(yaml.BaseLoader):
    """Composes nodes until there are too many of them: PyYAML itself would go on for minutes."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._composed = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._composed += 1
        self._depth += 1
        if self._composed > _MOST_NODES or self._depth > _MOST_DEPTH + 1:
            raise _TooLargeError(self.peek_event().start_mark.line + 1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class Document:
    """Plain data, and the line that each key path stands on."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[tuple[KeyPath, ConfigIssue]] = []
        self._nodes = 0
        try:
            node = yaml.compose(text, Loader=_Loader)
        except _TooLargeError as error:
            raise ConfigError(f"{name}:{error.line}: {_TOO_LARGE}") from None
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{name}:{mark.line + 1}" if mark else f"{name}:1"
            raise ConfigError(f"{where}: not valid YAML: {_reason(error)}") from None
        self.data = self._build(node, ()) if node is not None else {}
        if not isinstance(self.data, dict):
            raise ConfigError(f"{name}:1: must be a mapping of sections, such as `run:` and `model:`")

    def _build(self, node: yaml.Node, path: KeyPath, line: int | None = None) -> Any:
        """Plain data of a node; `line` stands for the lines of all that is in it."""
        self.lines.setdefault(path, self._line(node, line))
        self._nodes += 1
        if len(path) > _MOST_DEPTH or self._nodes > _MOST_NODES:
            raise ConfigError(f"{self.name}:{self._line(node, line)}: {_TOO_LARGE}")
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
            self.problems.append((path, ConfigIssue(dotted(path), node.tag, "YAML tags are not used here")))
        if isinstance(node, yaml.MappingNode):
            return self._build_mapping(node, path, line)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*path, index), line) for index, item in enumerate(node.value)]
        if isinstance(node.value, str) and (problem := _text_problem(dotted(path), node.value)):
            self.problems.append((path, problem))
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return _scalar(node.value) if plain else node.value

    def _build_mapping(self, node: yaml.MappingNode, path: KeyPath, line: int | None) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            if has_control_characters(key):
                self.problems.append((path, ConfigIssue(dotted(path), key, "a key holds control characters")))
            below = (*path, key)
            if key in built:
                first = self.lines[below]
                self.problems.append((below, ConfigIssue(dotted(below), key, f"given twice (also on line {first})")))
            self.lines[below] = self._line(key_node, line)
            built[key] = self._build(value_node, below, line)
        return built

    @staticmethod
    def _line(node: yaml.Node, line: int | None) -> int:
        return node.start_mark.line + 1 if line is None else line

    def override(self, assignment: str) -> None:
        key, equals, text = assignment.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
            shown = without_credentials(assignment)
            raise ConfigError(f"command line: {shown!r}: must be key.sub=value, such as training.steps=100")
        path: KeyPath = tuple(int(part) if re.fullmatch(r"[0-9]{1,6}", part) else part for part in key.split("."))
        at: Any = self.data
        for depth, part in enumerate(path[:-1]):
            if isinstance(at, dict) and isinstance(part, str):
                if not isinstance(at.get(part), dict | list):
                    at[part] = {}
                    self.lines[path[: depth + 1]] = COMMAND_LINE
                at = at[part]
            elif isinstance(at, list) and isinstance(part, int) and part < len(at):
                at = at[part]
            else:
                raise ConfigError(f"command line: {dotted(path[: depth + 1])}: there is no such element to set")
        last = path[-1]
        if isinstance(at, list) and not (isinstance(last, int) and last < len(at)):
            raise ConfigError(f"command line: {key}: there is no such element to set")
        if path in _ALTERNATIVES:
            at.pop(_ALTERNATIVES[path][-1], None)
        self.lines[path] = COMMAND_LINE
        at[last] = self._value(text, path)

    def _value(self, text: str, path: KeyPath) -> Any:
        """The value of an override: YAML, or the text itself where it is none."""
        try:
            node = yaml.compose(text, Loader=_Loader)
        except _TooLargeError:
            raise ConfigError(f"command line: {dotted(path)}: {_TOO_LARGE}") from None
        except (yaml.YAMLError, RecursionError):
            if problem := _text_problem(dotted(path), text):
                self.problems.append((path, problem))
            return text
        return None if node is None else self._build(node, path, COMMAND_LINE)

    def where(self, path: KeyPath) -> str:
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path, 1)
        return "command line" if line == COMMAND_LINE else f"{self.name}:{line}"


def dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _scalar(text: str) -> Any:
    return next((read(text) for pattern, read in _CORE_SCHEMA if pattern.fullmatch(text)), text)


def _text_problem(field: str, text: str) -> ConfigIssue | None:
    """What no text of a configuration may hold, whatever the field."""
    if has_control_characters(text):
        return ConfigIssue(field, text, "holds control characters, or bytes that are not UTF-8")
    if found := credentials_in(text):
        return ConfigIssue(field, None, f"holds {found}", _CREDENTIALS_FIX)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return " ".join(reason.split())
