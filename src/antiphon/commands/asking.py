"""Asking one of our own processes by HTTP, once.

Lives here: one function for every address that we ask (a Unix socket, a port, with TLS), and whom our own ports take
for one of us. Not here: what the answers mean (`envoy_admin.py`, `health.py`, `up.py`).

Invariant: who does not answer within the time is no error here.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import aiohttp

from antiphon.config.processes import SidecarTlsSettings


async def ask(
    place: str,
    path: str,
    seconds: float,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | bool = True,
) -> bytes | None:
    """The body of a 200 from `unix:PATH`, `HOST:PORT` or `http(s)://HOST:PORT`, else None."""
    connector = aiohttp.UnixConnector(place.removeprefix("unix:")) if place.startswith("unix:") else None
    base = "http://here" if connector is not None else (place if "://" in place else f"http://{place}")
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=seconds)) as session,
            session.request(method, base + path, headers=headers, ssl=tls) as answer,
        ):
            return await answer.read() if answer.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


def own_tls(files: SidecarTlsSettings) -> ssl.SSLContext:
    """For our own port on this machine: whether it answers, not who it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if files.envoy_cert is not None:
        context.load_cert_chain(files.envoy_cert, files.envoy_key)
    return context
