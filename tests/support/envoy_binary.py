"""Which Envoy tests start: the one installed beside this Python, or that of `--envoy PATH`.

Invariant: without `--envoy` every setting is as without this.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from antiphon.envoy.versions import EnvoyVersion, find_envoy, version_of


class _Chosen:
    """What `--envoy` says."""

    path: Path | None = None


chosen = _Chosen()


def envoy_binary() -> Path:
    """The binary."""
    return find_envoy(chosen.path)


@cache
def envoy_version() -> EnvoyVersion:
    """The version for which its configuration is made."""
    return version_of(envoy_binary())


def envoy_environ() -> dict[str, str]:
    """The settings of another process that starts it."""
    return {} if chosen.path is None else {"ANTIPHON_ENVOY__BINARY": str(chosen.path)}
