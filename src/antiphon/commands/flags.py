"""The flags that are settings, and how a parsed command line becomes settings.

Lives here: which flag sets what. Not here: which command has which flags (`cli.py`), what settings there are
(`antiphon.config`).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from antiphon.config import Settings, load_settings
from antiphon.settings_sources import CONFIG_VARIABLE

__all__ = ["COMMON_FLAGS", "SIDECAR_FLAGS", "UP_FLAGS", "settings_of"]

# flag, path of the setting, help
COMMON_FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "--upstream": (("upstream", "url"), "base URL of the chat server, for example http://127.0.0.1:11434/v1"),
    "--listen": (("listen",), "where clients connect, HOST:PORT (port 0: any free port)"),
    "--data": (("data",), "data folder: databases, keys, sockets"),
    "--mode": (("mode",), "auto, relay or drive (envoy door)"),
    "--transport": (("sidecar", "transport"), "gRPC server of the sidecar: auto, grpcio or http2"),
    "--log-level": (("log", "level"), "debug, info, warning or error"),
    "--log-format": (("log", "format"), "auto, json or console"),
}
UP_FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "--workers": (("workers",), "sidecar or HTTP door processes"),
    "--door": (("door",), "envoy or http"),
    "--envoy": (("envoy", "binary"), "path of the Envoy binary"),
}
SIDECAR_FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "--grpc": (("sidecar", "grpc"), "where the ext_proc service listens: unix:PATH or HOST:PORT"),
    "--http": (("sidecar", "http"), "where the sidecar's HTTP port listens: unix:PATH or HOST:PORT"),
    "--model-door": (("sidecar", "model_door"), "Envoy's listener for the sidecar's model calls"),
}


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The effective settings of a parsed command line. Raises `ConfigError`."""
    flags: dict[str, Any] = {}
    for name, value in vars(arguments).items():
        known = any(
            ".".join(path) == name for group in (COMMON_FLAGS, UP_FLAGS, SIDECAR_FLAGS) for path, _ in group.values()
        )
        if not known or value is None:
            continue
        section = flags
        *above, last = name.split(".")
        for part in above:
            section = section.setdefault(part, {})
        section[last] = value
    given = getattr(arguments, "config", None) or os.environ.get(CONFIG_VARIABLE)
    return load_settings(flags, dict(os.environ), Path(given) if given else None)
