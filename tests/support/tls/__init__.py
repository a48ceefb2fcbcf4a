"""TLS contexts for tests, from the certificates in this folder."""

from __future__ import annotations

import ssl
from pathlib import Path

__all__ = ["CA_FILE", "client_context", "server_context"]

_HERE = Path(__file__).parent
CA_FILE = _HERE / "ca.pem"


def server_context() -> ssl.SSLContext:
    """A server known as `localhost`, `chat.test` and `127.0.0.1`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_HERE / "server.pem", _HERE / "server.key")
    return context


def client_context() -> ssl.SSLContext:
    """A client that trusts the test authority and nobody else."""
    return ssl.create_default_context(cafile=str(CA_FILE))
