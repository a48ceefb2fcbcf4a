"""Where settings come from: a YAML file, the environment, flags.

Lives here: reading and merging the sources into one nested mapping. Not here: what settings there are and whether their
values are right (`config.py`).

Invariant: an unknown name is an error in every source, with the nearest known name as advice.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from antiphon.errors import ConfigError

__all__ = ["field_paths", "merge", "read_environment", "read_file"]

_PREFIX = "ANTIPHON_"
# Read by Envoy's process, never by ours: they carry secrets to it.
_OTHERS = frozenset({"ANTIPHON_UPSTREAM_KEY", "ANTIPHON_SIDECAR_SECRET"})


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings, the second over the first."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        merged[key] = merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError`."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"the settings file {path} must hold a mapping of settings")
    return values


def read_environment(environ: Mapping[str, str], model: type[BaseModel]) -> dict[str, Any]:
    """The settings in `ANTIPHON_*` variables; two underscores stand between a section and its setting.

    Lists are separated by commas. Raises `ConfigError` for a variable that is no setting.
    """
    known = {_PREFIX + "__".join(path).upper(): (path, kind) for path, kind in field_paths(model)}
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or name in _OTHERS:
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{name} is not a setting{advice}")
        path, kind = known[name]
        section = values
        for part in path[:-1]:
            section = section.setdefault(part, {})
        is_list = typing.get_origin(kind) is tuple
        section[path[-1]] = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
    return values


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


def default_of(model: type[BaseModel], path: tuple[str, ...]) -> Any:
    """A setting's default, for the documentation."""
    field = model.model_fields[path[0]]
    if len(path) > 1:
        assert isinstance(field.annotation, type)
        return default_of(field.annotation, path[1:])
    return None if field.default is PydanticUndefined else field.default
