"""Passes the settings to a child process of `antiphon up`: secrets in environment variables, all other settings in a
file.

This module finds the secrets, and changes the settings that must differ in a child process, such as the paths of
sockets. `generation.py` starts the children.

Invariant: the file contains no secret. Every setting with a non-default value is in the file or in the environment.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from antiphon.config.section import field_paths
from antiphon.config.settings import Settings
from antiphon.config.urls import shown_text
from antiphon.envoy.routes import KEY_VARIABLE, SECRET_VARIABLE, key_variable
from antiphon.envoy.tracing import header_variable

# A body of megabytes needs several blocks of this size. By default, glibc returns such memory to the system after each
# request, and the kernel clears it again for the next one. Other C libraries ignore these variables.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}


def file_values(settings: Settings, *, exclude_defaults: bool = False) -> dict[str, Any]:
    """Return the settings without secrets as plain values. If `exclude_defaults` is True, the result contains only
    non-default values."""
    values = settings.model_dump(mode="json", exclude_defaults=exclude_defaults)
    for path in _secrets(settings):
        del _at(values, path[:-1])[path[-1]]
    if settings.has_default:
        # The default upstream is included even with its default URL. A file with `upstreams` but without `upstream`
        # would have no default upstream.
        values["upstream"] = {"url": settings.upstream.url, **values.get("upstream", {})}
    else:
        values.pop("upstream", None)
    return values


def secret_environment(settings: Settings) -> dict[str, str]:
    """Return the secrets as environment variables. Each variable has the name that Antiphon reads for this setting
    (`ANTIPHON_…`)."""
    return {"ANTIPHON_" + "__".join(path).upper(): _as_text(value) for path, value in _secrets(settings).items()}


def placed_in(settings: Settings, folder: Path, shared: Path) -> Settings:
    """Return the settings for the child processes of one generation. `folder` is the generation's folder, which
    replaces `{data}` in addresses. `shared` is the folder that the workers of all generations share."""

    def place(address: str) -> str:
        return address.replace("{data}", str(folder))

    sidecar = settings.sidecar
    names = ("grpc", "http", "model_door")
    times = settings.timeouts
    if settings.door == "envoy":
        # Envoy gives notice and closes its listener itself, so the sidecars have only the rest of the time for their
        # drain.
        times = times.model_copy(update={"drain": times.drain - (times.notice or 0.0), "notice": 0.0})
    code = settings.code_interpreter
    if code.sockets is None:
        code = code.model_copy(update={"sockets": shared})
    return settings.model_copy(
        update={
            "code_interpreter": code,
            # The parent formats the children's log lines as the settings require.
            "log": settings.log.model_copy(update={"format": "json"}),
            "data": settings.data.absolute(),
            "timeouts": times,
            # The parent serves the metrics of all workers, so the workers open no metrics port.
            "metrics": settings.metrics.model_copy(update={"listen": None}),
            "sidecar": sidecar.model_copy(update={name: place(getattr(sidecar, name)) for name in names}),
            "envoy": settings.envoy.model_copy(update={"admin": place(settings.envoy.admin)}),
        }
    )


def plain_environment() -> dict[str, str]:
    """Return the environment variables of this process without Antiphon's settings and secrets."""
    # `NOTIFY_SOCKET` is left out too, because only the parent notifies the service manager.
    ours = (name for name in os.environ if not (name.startswith("ANTIPHON_") or name == "NOTIFY_SOCKET"))
    return {name: os.environ[name] for name in ours}


def worker_environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables for a worker, including the secrets of the settings."""
    return {**_ALLOCATOR, **plain_environment(), **secret_environment(settings)}


def envoy_environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables for Envoy: the upstreams' API keys, the collector's credentials, and the secret
    that Envoy and the sidecars share."""
    secrets = {KEY_VARIABLE: settings.upstream.api_key, SECRET_VARIABLE: settings.sidecar.secret}
    secrets |= {key_variable(name): upstream.api_key for name, upstream in settings.upstreams.items()}
    secrets |= {header_variable(name): value for name, value in settings.tracing.headers.items()}
    given = {name: value.get_secret_value() for name, value in secrets.items() if value is not None}
    return {**plain_environment(), **given}


def _secrets(settings: Settings) -> dict[tuple[str, ...], object]:
    """Return each setting whose value is or contains a secret, by its path."""
    values = settings.model_dump()
    found = {path: _at(values, path) for path, _ in field_paths(Settings)}
    return {path: value for path, value in found.items() if _holds_secret(value)}


def _at(values: dict[str, Any], path: tuple[str, ...]) -> Any:
    return reduce(getitem, path, values)


def _holds_secret(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_secret, value.values()))
    if isinstance(value, tuple | list):
        return any(map(_holds_secret, value))
    return isinstance(value, SecretStr) or (isinstance(value, str) and shown_text(value) != value)


def _as_text(value: object) -> str:
    """Return the value of a setting as text. A string stays unchanged. Any other value becomes JSON that is also valid
    YAML. Therefore the function escapes all characters outside ASCII as YAML does, because some would be line ends in
    YAML."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, str):
        return value
    text = json.dumps(value, ensure_ascii=False, default=_as_json)
    return re.sub(r"[^\x20-\x7e]", lambda found: f"\\U{ord(found[0]):08x}", text)


def _as_json(value: object) -> object:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return list(value) if isinstance(value, frozenset) else str(value)
