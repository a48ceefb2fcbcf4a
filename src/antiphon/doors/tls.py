"""Builds the TLS contexts of the sidecar's own TCP ports.

`ExtProcDoor` and `HttpDoor` use the contexts for TCP ports. `envoy/clusters.py` configures TLS for Envoy, the client of
these ports.

Invariant: unusable files raise `ConfigError` before a server listens. If `client_ca` is set, the handshake fails for a
client without a certificate from this CA.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from antiphon.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The paths of PEM files: the server certificate with its chain, the private key, and the CA that signs client
    certificates. If `client_ca` is None, the server asks for no client certificate."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self, protocol: str) -> ssl.SSLContext:
        """Build the server's TLS context for one ALPN protocol (`h2` or `http/1.1`). Raises `ConfigError`."""
        check_readable("sidecar.tls.cert", self.cert)
        check_readable("sidecar.tls.key", self.key)
        if self.client_ca is not None:
            check_readable("sidecar.tls.client_ca", self.client_ca)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([protocol])
        try:
            # The empty password prevents a prompt on the terminal. With an encrypted key the call fails instead.
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
        """The bytes of the certificate file, the key file and the CA file, after a check that they can be used
        together. Raises `ConfigError`."""
        self.context("h2")
        return self.cert.read_bytes(), self.key.read_bytes(), self.client_ca.read_bytes() if self.client_ca else None


def check_readable(setting: str, file: Path) -> None:
    """Raise `ConfigError` when the file is missing or unreadable. The error names the setting and the file."""
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{setting}: {file} cannot be read: {error.strerror}") from None
