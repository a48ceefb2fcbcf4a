"""Builds the TLS contexts with which this process verifies other servers' certificates.

Lives here: nothing else, so that a check of the files imports no client code. Not here: connections (`outgoing.py`),
the server's own certificates (`doors/tls.py`).

Invariant: an unusable file raises `ConfigError` with the setting's name.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from antiphon.config.upstreams import UpstreamSettings
from antiphon.engine.exchange.model_routes import DEFAULT_UPSTREAM
from antiphon.errors import ConfigError


def section(upstream: str) -> str:
    """The name of an upstream's section in the settings."""
    return "upstream" if upstream == DEFAULT_UPSTREAM else f"upstreams.{upstream}"


def upstream_trust(name: str, upstream: UpstreamSettings) -> ssl.SSLContext | None:
    """The TLS context for calls to this upstream; None without TLS. Raises `ConfigError`."""
    return trusted(f"{section(name)}.ca_file", upstream.ca_file) if upstream.tls else None


def trusted(setting: str, file: Path | None) -> ssl.SSLContext:
    """A context that trusts the CAs of this file, or the system's. Raises `ConfigError`."""
    try:
        return ssl.create_default_context(cafile=str(file) if file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{setting}: {file} cannot be used: {error}") from None
