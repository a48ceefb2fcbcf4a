"""TLS contexts for tests, with the certificates in this folder."""

from __future__ import annotations

import ssl
from pathlib import Path

__all__ = ["CA_FILE", "client_context", "server_context"]

_HERE = Path(__file__).parent
CA_FILE = _HERE / "ca.pem"


def server_context() -> ssl.SSLContext:
    """The context of a server with the names `localhost`, `chat.test` and `127.0.0.1`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_HERE / "server.pem", _HERE / "server.key")
    return context


def client_context() -> ssl.SSLContext:
    """The context of a client that trusts only the test authority."""
    return ssl.create_default_context(cafile=str(CA_FILE))
