"""Settings on their way to a child process: a file for most of them, the environment for those that are secret.

Lives here: telling the two apart, wherever in the settings a secret stands. Not here: starting children (`up.py`).

Invariant: no secret is in the file's values, and every setting is in one of the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from antiphon.config import Settings
from antiphon.settings_sources import field_paths

__all__ = ["file_values", "secret_environment"]


def file_values(settings: Settings) -> dict[str, Any]:
    """Everything that is no secret, as plain values."""
    values = settings.model_dump(mode="json")
    for path, _ in field_paths(Settings):
        if _holds_secret(_at(settings, path)):
            section = values
            for part in path[:-1]:
                section = section[part]
            del section[path[-1]]
    if not settings.has_default:
        values.pop("upstream")
    return values


def secret_environment(settings: Settings) -> dict[str, str]:
    """The secrets, as the variables that settings are read from."""
    environ = {}
    for path, _ in field_paths(Settings):
        value = _at(settings, path)
        if _holds_secret(value):
            environ["ANTIPHON_" + "__".join(path).upper()] = _as_text(_revealed(value))
    return environ


def _at(settings: Settings, path: tuple[str, ...]) -> Any:
    value: Any = settings
    for part in path:
        value = getattr(value, part)
    return value


def _holds_secret(value: Any) -> bool:
    if isinstance(value, SecretStr):
        return True
    if isinstance(value, BaseModel):
        return any(_holds_secret(getattr(value, name)) for name in type(value).model_fields)
    if isinstance(value, Mapping):
        return any(_holds_secret(each) for each in value.values())
    return isinstance(value, tuple | list) and any(_holds_secret(each) for each in value)


def _revealed(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, BaseModel):
        return {name: _revealed(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {name: _revealed(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_revealed(each) for each in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _as_text(value: Any) -> str:
    """Lists are separated by commas, what holds settings of its own is JSON (which is YAML)."""
    if isinstance(value, list):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value)
