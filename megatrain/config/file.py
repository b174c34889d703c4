"""YAML and `key.sub=value` overrides -> a config; every mistake of a file found at once, each with its line."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from megatrain.base.credentials import without_credentials
from megatrain.base.errors import ConfigError
from megatrain.base.files import read_bytes
from megatrain.base.section import Choice
from megatrain.base.terminal import printable
from megatrain.config import Config, FinetuneConfig, PretrainConfig
from megatrain.config.document import Document, Dumper, KeyPath, dotted
from megatrain.config.extensions import load_extensions
from megatrain.config.migrate import RENAMED, migrated
from megatrain.config.rules import ConfigIssue, validate

_MOST_BYTES = 1 << 20
_CONFIG = "config.yaml"  # of a run
_NOT_CONTINUED = ("adapter", "train_layers")  # of a model, whose weights are merged
_MOST_SHOWN = 200  # characters of a wrong value


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check one file.

    A file with a `finetune:` section is a FinetuneConfig, any other a PretrainConfig.

    Raises:
        ConfigError: the file cannot be read, or holds mistakes; one line for each of them.
    """
    return parse_config(_read(Path(path)), name=str(path), overrides=overrides)


def load_own_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read what a run keeps of its configuration; an older version of megatrain may have written it.

    Raises:
        ConfigError: as `load_config`.
    """
    document = Document(str(path), _read(path))
    migrated(document.data)
    return _parse(document, overrides)


def load_extensions_of(path: Path) -> None:
    """Import the extensions that a run's own configuration names, for who reads another of its files.

    Raises:
        ConfigError: the file cannot be read, or one cannot be imported.
    """
    if path.is_file():
        _import_extensions(Document(str(path), _read(path)))


def parse_config(text: str, *, name: str = "<config>", overrides: Sequence[str] = ()) -> Config:
    """As `load_config`, from text. `name` stands for the file in messages."""
    return _parse(Document(name, text), overrides)


def _parse(document: Document, overrides: Sequence[str]) -> Config:
    for assignment in overrides:
        document.override(assignment)
    _import_extensions(document)
    _take_model_of_base(document)
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
            for problem in validate(config)
            if not any(problem.field == at or at.startswith(problem.field + ".") for at in broken)
        ]
    if found:
        raise ConfigError("\n".join(_format(document, path, problem) for path, problem in _in_order(document, found)))
    assert config is not None
    return config


def _take_model_of_base(document: Document) -> None:
    """Of a continued pretraining that names no model, before its file is checked: a pretraining has one."""
    section = document.data.get("continued")
    base = section.get("base") if isinstance(section, dict) else None
    if not isinstance(base, str) or "model" in document.data:
        return
    run = document.data.get("run")
    own = [Path(str(run.get("directory", "runs")), str(run.get("name")), _CONFIG)] if isinstance(run, dict) else []
    places = (Path(base, _CONFIG), Path(base).parent.parent / _CONFIG, *own)  # its own: the base may be gone by then
    file = next((one for one in places if one.is_file()), None)
    if file is None:
        where = document.where(("continued", "base"))
        rule = "is not a run of megatrain, nor one of its checkpoints: there is no config.yaml"
        raise ConfigError(printable(f"{where}: continued.base: {_shown(base)}: {rule}."))
    theirs = Document(str(file), _read(file))
    migrated(theirs.data)
    model = theirs.data.get("model")
    if isinstance(model, dict):
        document.data["model"] = {name: value for name, value in model.items() if name not in _NOT_CONTINUED}


def _read(path: Path) -> str:
    try:
        return read_bytes(path, limit=_MOST_BYTES, error=ConfigError).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None


def _import_extensions(document: Document) -> None:
    """Only what is well formed: of the rest, validation says what is wrong."""
    modules = document.data.get("extensions")
    if isinstance(modules, list):
        for number, module in enumerate(modules):
            if not isinstance(module, str) or not all(part.isidentifier() for part in module.split(".")):
                continue
            try:
                load_extensions([module])
            except ConfigError as error:
                path = ("extensions", number)
                raise ConfigError(f"{document.where(path)}: {dotted(path)}: {printable(str(error))}") from None


def dump_config(config: Config) -> str:
    """YAML that `parse_config` reads back to an equal config."""
    plain = config.model_dump(mode="json", exclude_none=True)
    return yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _structural(error: ValidationError, kind: type[BaseModel], data: Any) -> list[tuple[KeyPath, ConfigIssue]]:
    """Pydantic's errors in our words. A union reports every arm it tried: one line is kept for each field."""
    found: dict[KeyPath, ConfigIssue] = {}
    for item in error.errors():
        path = _within(data, item["loc"], missing=item["type"] == "missing")
        field, value = dotted(path), item["input"]
        if item["type"] == "extra_forbidden":
            problem = _unknown_key(kind, data, path, value)
        elif item["type"] == "missing":
            short = isinstance(value, list | tuple)  # a pair with one element
            problem = ConfigIssue(field, None, "has too few elements" if short else "is required")
        elif item["type"] == "literal_error":
            problem = ConfigIssue(field, value, _literal_rule(item, found.get(path)), _nearest_literal(item, value))
        else:
            problem = ConfigIssue(field, value, _rule(item))
            if path in found:
                problem = problem._replace(rule=_either(found[path].rule, problem.rule))
        found[path] = problem
    # a container that fails only because of what is in it adds nothing
    return [(path, p) for path, p in found.items() if not any(o[: len(path)] == path != o for o in found)]


def _unknown_key(kind: type[BaseModel], data: Any, path: KeyPath, value: Any) -> ConfigIssue:
    field = dotted(path)
    if field in RENAMED:
        return ConfigIssue(field, value, "has another name now", f"Write {RENAMED[field]}.")
    known = _fields_at(kind, data, path[:-1])
    close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.6)
    fix = f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}." if known else ""
    return ConfigIssue(field, value, "unknown key", fix)


def _rule(item: Any) -> str:
    text = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if item["type"] == "string_pattern_mismatch" and item["loc"][-1] == "time":
        text = "must be a Slurm time, such as 12:00:00 or 2-00:00:00"
    elif item["type"] == "string_pattern_mismatch":
        text = "must be letters, digits, dots, dashes and underscores, and start with a letter or digit"
    return text[0].lower() + text[1:]


def _literal_rule(item: Any, earlier: ConfigIssue | None) -> str:
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
    for number, part in enumerate(location, 1):
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        inside = in_list or (isinstance(data, dict) and part in data)
        if not inside:
            if missing and number == len(location) and isinstance(data, dict):
                path.append(part)
            continue
        path.append(part)
        data = data[part]
    return tuple(path)


def _fields_at(kind: type[BaseModel], data: Any, path: KeyPath) -> list[str]:
    """The keys that a section knows, found by walking the models' annotations."""
    current: Any = kind
    for part in path:
        data = data[part]
        if isinstance(part, str):
            field = current.model_fields.get(part)
            if field is None:  # a name within a mapping
                continue
            marks = [*field.metadata, *_arms(field.annotation)]
            choice = next((mark for mark in marks if isinstance(mark, Choice)), None)
            if choice is not None:
                current = choice.section(data)
                continue
            arms = _arms(field.annotation)
        else:
            arms = _arms(current)
        current = next((arm for arm in arms if isinstance(arm, type) and issubclass(arm, BaseModel)), None)
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


def _in_order(document: Document, found: list[tuple[KeyPath, ConfigIssue]]) -> list[tuple[KeyPath, ConfigIssue]]:
    def line(item: tuple[KeyPath, ConfigIssue]) -> int:
        path = item[0]
        while path and path not in document.lines:
            path = path[:-1]
        return document.lines.get(path, 1)

    return sorted(found, key=line)


def _format(document: Document, path: KeyPath, problem: ConfigIssue) -> str:
    value = "" if problem.value is None or isinstance(problem.value, dict | list) else f" {_shown(problem.value)}:"
    fix = f" {problem.fix}" if problem.fix else ""
    line = f"{document.where(path)}: {problem.field or 'the file'}:{value} {problem.rule.rstrip('.')}.{fix}"
    return printable(without_credentials(line))  # keys, too, can hold anything


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
