"""YAML and `key.sub=value` overrides -> a config; every mistake of a file found at once, each with its line.

Scalars follow YAML 1.2: `3e-4` is a number and `12:00:00` is text, though PyYAML takes them for text and 43200.
Duplicate keys and tags are mistakes.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from megatrain.config import Config, FinetuneConfig, PretrainConfig
from megatrain.config_rules import Problem, problems
from megatrain.errors import ConfigError

COMMAND_LINE = 0  # the "line" of a value that came from an override
_MOST_DEPTH, _MOST_NODES = 20, 10_000  # aliases can make a short text endless

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


class _Dumper(yaml.SafeDumper):
    """Quotes text that would be read back as anything else, by either schema."""


for _pattern, _ in _CORE_SCHEMA[2:4]:
    _Dumper.add_implicit_resolver("!number", re.compile(rf"^({_pattern.pattern})$"), list("-+.0123456789"))


class _Document:
    """Plain data, and the line that each key path stands on."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[tuple[KeyPath, Problem]] = []
        self._nodes = 0
        try:
            node = yaml.compose(text, Loader=yaml.BaseLoader)
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
            raise ConfigError(f"{self.name}:{self._line(node, line)}: is deeper or larger than a configuration can be")
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
            self.problems.append((path, Problem(_dotted(path), node.tag, "YAML tags are not used here")))
        if isinstance(node, yaml.MappingNode):
            return self._build_mapping(node, path, line)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*path, index), line) for index, item in enumerate(node.value)]
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return _scalar(node.value) if plain else node.value

    def _build_mapping(self, node: yaml.MappingNode, path: KeyPath, line: int | None) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            below = (*path, key)
            if key in built:
                first = self.lines[below]
                self.problems.append((below, Problem(_dotted(below), key, f"given twice (also on line {first})")))
            self.lines[below] = self._line(key_node, line)
            built[key] = self._build(value_node, below, line)
        return built

    @staticmethod
    def _line(node: yaml.Node, line: int | None) -> int:
        return node.start_mark.line + 1 if line is None else line

    def override(self, assignment: str) -> None:
        key, equals, text = assignment.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
            raise ConfigError(f"command line: {assignment!r}: must be key.sub=value, such as training.steps=100")
        path: KeyPath = tuple(int(part) if part.isdigit() else part for part in key.split("."))
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
                raise ConfigError(f"command line: {_dotted(path[: depth + 1])}: there is no such element to set")
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
            node = yaml.compose(text, Loader=yaml.BaseLoader)
        except (yaml.YAMLError, RecursionError):
            return text
        return None if node is None else self._build(node, path, COMMAND_LINE)

    def where(self, path: KeyPath) -> str:
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path, 1)
        return "command line" if line == COMMAND_LINE else f"{self.name}:{line}"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check one file.

    A file with a `finetune:` section is a FinetuneConfig, any other a PretrainConfig.

    Raises:
        ConfigError: the file cannot be read, or holds mistakes; one line for each of them.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    return parse(text, name=str(path), overrides=overrides)


def parse(text: str, *, name: str = "<config>", overrides: Sequence[str] = ()) -> Config:
    """As `load`, from text. `name` stands for the file in messages."""
    document = _Document(name, text)
    for assignment in overrides:
        document.override(assignment)
    kind = FinetuneConfig if "finetune" in document.data else PretrainConfig
    found = list(document.problems)
    config: Config | None = None
    try:
        config = kind.model_validate(document.data)
    except ValidationError as error:
        found += _structural(error, kind, document.data)
        config = _without_mistakes(kind, document.data, [path for path, _ in found])
    broken = [".".join(map(str, path)) for path, _ in found]
    if config is not None:
        found += [
            (tuple(problem.field.split(".")), problem)
            for problem in problems(config)
            if not any(problem.field == at or at.startswith(problem.field + ".") for at in broken)
        ]
    if found:
        raise ConfigError("\n".join(_format(document, path, problem) for path, problem in _in_order(document, found)))
    assert config is not None
    return config


def dump(config: Config) -> str:
    """YAML that `parse` reads back to an equal config."""
    plain = config.model_dump(mode="json", exclude_none=True)
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _scalar(text: str) -> Any:
    return next((read(text) for pattern, read in _CORE_SCHEMA if pattern.fullmatch(text)), text)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return " ".join(reason.split())


def _structural(error: ValidationError, kind: type[BaseModel], data: Any) -> list[tuple[KeyPath, Problem]]:
    """Pydantic's errors in our words. A union reports every arm it tried: one line is kept for each field."""
    found: dict[KeyPath, Problem] = {}
    for item in error.errors():
        path = _within(data, item["loc"], missing=item["type"] == "missing")
        field, value = _dotted(path), item["input"]
        if item["type"] == "extra_forbidden":
            known = _fields_at(kind, path[:-1])
            close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.6)
            fix = f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}." if known else ""
            problem = Problem(field, value, "unknown key", fix)
        elif item["type"] == "missing":
            short = isinstance(value, list | tuple)  # a pair with one element
            problem = Problem(field, None, "has too few elements" if short else "is required")
        elif item["type"] == "literal_error":
            problem = Problem(field, value, _literal_rule(item, found.get(path)), _nearest_literal(item, value))
        else:
            problem = Problem(field, value, _rule(item))
            if path in found:
                problem = problem._replace(rule=_either(found[path].rule, problem.rule))
        found[path] = problem
    # a container that fails only because of what is in it adds nothing
    return [(path, p) for path, p in found.items() if not any(o[: len(path)] == path != o for o in found)]


def _rule(item: Any) -> str:
    text = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if item["type"] == "string_pattern_mismatch" and item["loc"][-1] == "time":
        text = "must be a Slurm time, such as 12:00:00 or 2-00:00:00"
    elif item["type"] == "string_pattern_mismatch":
        text = "must be letters, digits, dots, dashes and underscores, and start with a letter or digit"
    return text[0].lower() + text[1:]


def _literal_rule(item: Any, earlier: Problem | None) -> str:
    rule = f"must be {item['ctx']['expected'].replace(chr(39), '')}"
    return _either(earlier.rule, rule) if earlier else rule


def _either(first: str, second: str) -> str:
    return first if second in first else f"{first} or {second.removeprefix('must be ')}"


def _nearest_literal(item: Any, value: Any) -> str:
    allowed = re.findall(r"'([^']+)'", item["ctx"]["expected"])
    close = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.6)
    return f"Did you mean {close[0]}?" if close else ""


def _within(data: Any, location: Sequence[str | int], *, missing: bool) -> KeyPath:
    """The part of a pydantic location that is a path into `data`; the rest names arms of a union."""
    path: list[str | int] = []
    for part in location:
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        inside = in_list or (isinstance(data, dict) and part in data)
        if not inside:
            if missing and isinstance(data, dict):
                path.append(part)
            break
        path.append(part)
        data = data[part]
    return tuple(path)


def _fields_at(kind: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that a section knows, found by walking the models' annotations."""
    current: Any = kind
    for part in path:
        annotation = current.model_fields[part].annotation if isinstance(part, str) else current
        current = next((arm for arm in _arms(annotation) if isinstance(arm, type) and issubclass(arm, BaseModel)), None)
        if current is None:
            return []
    return list(current.model_fields)


def _arms(annotation: Any) -> list[Any]:
    below = [arm for argument in get_args(annotation) for arm in _arms(argument)]
    return [annotation, *below]


def _without_mistakes(kind: type[BaseModel], data: Any, paths: list[KeyPath]) -> Any:
    """The config as it would be without the broken fields, so that the rules between the others are checked too."""
    for path in paths:
        data = _drop(data, path[:-1] if path and isinstance(path[-1], int) else path)
    try:
        return kind.model_validate(data)
    except ValidationError:
        return None


def _drop(data: Any, path: KeyPath) -> Any:
    if not path:
        return data
    if isinstance(data, list):
        return [_drop(item, path[1:]) if index == path[0] else item for index, item in enumerate(data)]
    if not isinstance(data, dict) or path[0] not in data:
        return data
    if len(path) == 1 or not isinstance(data[path[0]], dict | list):
        return {key: value for key, value in data.items() if key != path[0]}
    return {**data, path[0]: _drop(data[path[0]], path[1:])}


def _in_order(document: _Document, found: list[tuple[KeyPath, Problem]]) -> list[tuple[KeyPath, Problem]]:
    def line(item: tuple[KeyPath, Problem]) -> int:
        path = item[0]
        while path and path not in document.lines:
            path = path[:-1]
        return document.lines.get(path, 1)

    return sorted(found, key=line)


def _format(document: _Document, path: KeyPath, problem: Problem) -> str:
    value = "" if problem.value is None or isinstance(problem.value, dict | list) else f" {problem.value!r}:"
    fix = f" {problem.fix}" if problem.fix else ""
    return f"{document.where(path)}: {problem.field or 'the file'}:{value} {problem.rule.rstrip('.')}.{fix}"


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
