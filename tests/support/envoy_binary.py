"""Selects the Envoy that tests start: the one installed with this Python, or that of `--envoy PATH`.

Invariant: without `--envoy`, this module changes no setting.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from antiphon.envoy.versions import EnvoyVersion, find_envoy, version_of


class _Chosen:
    """The value of `--envoy`."""

    path: Path | None = None


chosen = _Chosen()


def envoy_binary() -> Path:
    """The path of the binary."""
    return find_envoy(chosen.path)


@cache
def envoy_version() -> EnvoyVersion:
    """The version for which Antiphon writes Envoy's configuration."""
    return version_of(envoy_binary())


def envoy_environ() -> dict[str, str]:
    """The environment variables for another process that starts Envoy."""
    return {} if chosen.path is None else {"ANTIPHON_ENVOY__BINARY": str(chosen.path)}
