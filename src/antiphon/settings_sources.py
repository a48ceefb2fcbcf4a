"""Where settings come from: a YAML file, the environment, flags.

Lives here: reading and merging the sources into one nested mapping. Not here: what settings there are and whether their
values are right (`antiphon.config`).

Invariant: an unknown name is an error in every source, with the nearest known name as advice.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from antiphon.errors import ConfigError

__all__ = ["CONFIG_VARIABLE", "field_paths", "merge", "read_environment", "read_file"]

_PREFIX = "ANTIPHON_"
CONFIG_VARIABLE = "ANTIPHON_CONFIG"
"""Names the settings file when no flag does."""
# No settings: where settings are, and what carries secrets to Envoy's process.
_OTHERS = frozenset({CONFIG_VARIABLE, "ANTIPHON_UPSTREAM_KEY", "ANTIPHON_SIDECAR_SECRET"})
_KEYS_PREFIX = "ANTIPHON_UPSTREAM_KEY_"


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings, the second over the first."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        merged[key] = merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def read_file(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError`, also for a name that is no setting."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"the settings file {path} must hold a mapping of settings")
    _check_names(values, model, str(path), ())
    return values


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, which YAML parsers settle in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1}:
            problem = f"{', '.join(sorted(twice))} is given twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _check_names(values: Mapping[Any, Any], model: type[BaseModel], source: str, above: tuple[str, ...]) -> None:
    for name, value in values.items():
        path = ".".join((*above, str(name)))
        field = model.model_fields.get(str(name))
        if field is None:
            known = [".".join(known) for known, _ in field_paths(model, above)]
            raise ConfigError(f"{source}: {path} is not a setting{_advice(path, known)}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {path} must hold a mapping of settings")
            _check_names(value, field.annotation, source, (*above, str(name)))


def _advice(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def read_environment(environ: Mapping[str, str], model: type[BaseModel]) -> dict[str, Any]:
    """The settings in `ANTIPHON_*` variables; two underscores stand between a section and its setting.

    Lists are separated by commas or YAML in brackets; what holds settings of its own (`models`, `upstreams`) is YAML.
    Raises `ConfigError` for a variable that is no setting.
    """
    known = {_PREFIX + "__".join(path).upper(): (path, kind) for path, kind in field_paths(model)}
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or name in _OTHERS or name.startswith(_KEYS_PREFIX):
            continue
        if name not in known:
            raise ConfigError(f"{name} is not a setting{_advice(name, known)}")
        path, kind = known[name]
        section = values
        for part in path[:-1]:
            section = section.setdefault(part, {})
        section[path[-1]] = _value(name, text, kind)
    return values


def _value(name: str, text: str, kind: Any) -> Any:
    """The text of a variable as a value of this type; lists are `a,b` or, as in YAML and JSON, `["a", "b"]`."""
    nested = typing.get_origin(kind) is dict or any(
        isinstance(part, type) and issubclass(part, BaseModel) for part in typing.get_args(kind)
    )
    listed = typing.get_origin(kind) is tuple
    if nested or (listed and text.lstrip().startswith("[")):
        try:
            return yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{name} is not valid YAML: {error}") from None
    if listed:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def field_paths(model: type[BaseModel], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every setting as its path and type, sections first to last."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, types.UnionType):
            kind = next((part for part in typing.get_args(kind) if part is not type(None)), kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += field_paths(kind, (*above, name))
        else:
            found.append(((*above, name), kind))
    return found
