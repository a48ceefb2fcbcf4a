"""Builds the TLS contexts with which this process verifies other servers' certificates.

This module imports no client code, so that a check of certificate files starts quickly. `upstreams.py` opens the
connections, and `doors/listening.py` loads the certificates of Antiphon's own servers.

Invariant: an unusable file raises `ConfigError` with the setting's name.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from antiphon.config.upstreams import UpstreamSettings
from antiphon.engine.exchange.model_routes import DEFAULT_UPSTREAM
from antiphon.errors import ConfigError


def section(upstream: str) -> str:
    """Return the name of an upstream's section in the settings."""
    return "upstream" if upstream == DEFAULT_UPSTREAM else f"upstreams.{upstream}"


def upstream_trust(name: str, upstream: UpstreamSettings) -> ssl.SSLContext | None:
    """Return the TLS context for calls to this upstream, or None if its URL is not https. Raises `ConfigError`."""
    return trusted(f"{section(name)}.ca_file", upstream.ca_file) if upstream.tls else None


def trusted(setting: str, file: Path | None) -> ssl.SSLContext:
    """Return a TLS context that trusts the certificate authorities in `file`, or the system's certificate authorities
    if `file` is None. Raises `ConfigError`, which names `setting`."""
    try:
        return ssl.create_default_context(cafile=str(file) if file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{setting}: {file} cannot be used: {error}") from None
