"""Builds the TLS contexts with which this process verifies other servers' certificates.

Lives here: nothing else, so that who only checks that their files can be used imports nothing that connects. Not here:
connections (`outgoing.py`), our own certificates (`doors/tls.py`).

Invariant: a file that cannot be used is a `ConfigError` that names the setting.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from antiphon.config.upstreams import UpstreamSettings
from antiphon.engine.exchange.model_routes import DEFAULT_UPSTREAM
from antiphon.errors import ConfigError


def section(upstream: str) -> str:
    """How settings name an upstream."""
    return "upstream" if upstream == DEFAULT_UPSTREAM else f"upstreams.{upstream}"


def upstream_trust(name: str, upstream: UpstreamSettings) -> ssl.SSLContext | None:
    """Whom calls of this upstream trust; None where they are not encrypted. Raises `ConfigError`."""
    return trusted(f"{section(name)}.ca_file", upstream.ca_file) if upstream.tls else None


def trusted(setting: str, file: Path | None) -> ssl.SSLContext:
    """Trust in the authorities of this file, or in the system's. Raises `ConfigError`."""
    try:
        return ssl.create_default_context(cafile=str(file) if file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{setting}: {file} cannot be used: {error}") from None
