"""Builds the TLS contexts of the sidecar's own TCP ports.

Lives here: the files and the context. Not here: the ports that use it (`ExtProcDoor`, `HttpDoor`: on TCP only), and
Envoy's side (`envoy/clusters.py`).

Invariant: unusable files raise `ConfigError` before a server listens. With `client_ca`, a client without a certificate
signed by it fails the handshake.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from antiphon.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the certificate with its chain, its key, and the CA of accepted clients (None: any client)."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self, protocol: str) -> ssl.SSLContext:
        """A server's context for this ALPN protocol (`h2`, `http/1.1`). Raises `ConfigError`."""
        check_readable("sidecar.tls.cert", self.cert)
        check_readable("sidecar.tls.key", self.key)
        if self.client_ca is not None:
            check_readable("sidecar.tls.client_ca", self.client_ca)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([protocol])
        try:
            # Never prompts for a passphrase on the terminal: an encrypted key is an error.
            context.load_cert_chain(self.cert, self.key, password=b"")
        except (OSError, ssl.SSLError, ValueError) as error:
            what = f"sidecar.tls.cert ({self.cert}) and sidecar.tls.key ({self.key})"
            raise ConfigError(f"{what} cannot be used together: {error}") from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ssl.SSLError, ValueError) as error:
                raise ConfigError(f"sidecar.tls.client_ca: {self.client_ca} cannot be used: {error}") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def contents(self) -> tuple[bytes, bytes, bytes | None]:
        """The bytes of certificate, key and CA, checked. Raises `ConfigError`."""
        self.context("h2")
        return self.cert.read_bytes(), self.key.read_bytes(), self.client_ca.read_bytes() if self.client_ca else None


def check_readable(setting: str, file: Path) -> None:
    """Raise `ConfigError` with the setting and the file, when the file is missing or unreadable."""
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{setting}: {file} cannot be read: {error.strerror}") from None
