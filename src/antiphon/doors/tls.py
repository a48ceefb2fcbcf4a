"""TLS of the sidecar's own TCP ports.

Lives here: the files, and the context made of them. Not here: when it is used (`ExtProcDoor`, `HttpDoor`: on TCP only),
and Envoy's side of it (`envoy/bootstrap.py`).

Invariant: files that cannot be used are a `ConfigError` before anything listens; with `client_ca` nobody without a
certificate signed by it gets further than the handshake.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from antiphon.errors import ConfigError

__all__ = ["TlsFiles"]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the certificate with its chain, its key, and the authorities whose clients are let in (None: any)."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self, protocol: str) -> ssl.SSLContext:
        """A server's context that speaks this protocol (`h2`, `http/1.1`). Raises `ConfigError`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([protocol])
        try:
            # Never asks for a passphrase on the terminal: an encrypted key is an error.
            context.load_cert_chain(self.cert, self.key, password=b"")
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ConfigError(f"sidecar.tls: the files cannot be used: {error}") from None
        return context

    def contents(self) -> tuple[bytes, bytes, bytes | None]:
        """The bytes of certificate, key and authorities, checked. Raises `ConfigError`."""
        self.context("h2")
        return self.cert.read_bytes(), self.key.read_bytes(), self.client_ca.read_bytes() if self.client_ca else None
