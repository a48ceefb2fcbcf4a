"""Reads the public keys (JWK Set, RFC 7517) of a token issuer: from its server, or from a file.

This module limits the time and the size of each download. `engine/running/issuer_keys.py` decides when to read the
keys, and `doors/issuer_tokens.py` parses them.

Invariants: a download ends within `SECONDS`, and reads at most one chunk more than `MOST_BYTES` of an answer. A
download follows no redirect. No error message contains a part of an answer.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Final

import aiohttp

from antiphon.config.owners import check_issuer_url

SECONDS: Final = 10.0
"""The maximum duration of a download, in seconds."""
MOST_BYTES: Final = 1 << 18
"""The maximum size of an answer or a file, in bytes."""
_DISCOVERY: Final = "/.well-known/openid-configuration"


class IssuerUnread(Exception):
    """Raised when Antiphon could not read the issuer's keys. The message is the cause, for the log. `url` is the URL or
    the file that Antiphon could not read."""

    def __init__(self, cause: str, url: str = "") -> None:
        super().__init__(cause)
        self.url = url


async def read_file(path: Path) -> bytes:
    """Return the bytes of the key set in a file, unparsed. Raises `IssuerUnread`."""

    def read() -> bytes:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)

    try:
        data = await asyncio.to_thread(read)
    except OSError as error:
        raise IssuerUnread(f"the file cannot be read: {error.strerror}", str(path)) from None
    return _bounded(data, str(path))


async def read_url(url: str, tls: ssl.SSLContext | None = None) -> bytes:
    """Return the bytes of the key set at this URL (`jwks_uri`), unparsed. Raises `IssuerUnread`.

    `tls` has the trusted certificate authorities. Without `tls`, Antiphon trusts the system's certificate authorities.
    """
    async with _session(tls) as session:
        return await _get(session, url)


async def read_discovered(issuer: str, tls: ssl.SSLContext | None = None) -> bytes:
    """Find the key set's URL by OpenID Connect Discovery 1.0, and return the bytes of the key set.

    The issuer's OpenID configuration must contain the same `issuer`, and an https URL in `jwks_uri`. Raises
    `IssuerUnread`.
    """
    async with _session(tls) as session:
        said = await _get(session, configuration := discovery_url(issuer))
        try:
            found = json.loads(said)
            # A configuration of another issuer would lead to keys of another issuer.
            if found["issuer"] != issuer:
                raise IssuerUnread("the OpenID configuration has a different issuer", configuration)
            url = str(found["jwks_uri"])
            check_issuer_url(url)
        except (ValueError, KeyError, TypeError, RecursionError):
            cause = "the OpenID configuration has no https:// URL in jwks_uri"
            raise IssuerUnread(cause, configuration) from None
        return await _get(session, url)


def discovery_url(issuer: str) -> str:
    """Return the URL of the issuer's OpenID configuration."""
    return issuer.rstrip("/") + _DISCOVERY


def _session(tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls or True, force_close=True),
        timeout=aiohttp.ClientTimeout(total=SECONDS / 2),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _get(session: aiohttp.ClientSession, url: str) -> bytes:
    try:
        async with session.get(url, headers={"accept": "application/json"}, allow_redirects=False) as answer:
            if answer.status != 200:
                raise IssuerUnread(f"the issuer answers with status {answer.status}", url)
            data = b""
            while len(data) <= MOST_BYTES and (part := await answer.content.readany()):
                data += part
    except TimeoutError:
        raise IssuerUnread("the issuer does not answer in time", url) from None
    except aiohttp.ClientConnectorCertificateError:
        raise IssuerUnread(
            "the issuer's certificate is not trusted: name its authorities with owner.jwt.ca_file", url
        ) from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise IssuerUnread(f"the issuer cannot be reached: {type(error).__name__}", url) from None
    return _bounded(data, url)


def _bounded(data: bytes, url: str) -> bytes:
    if len(data) > MOST_BYTES:
        raise IssuerUnread(f"the answer has more than {MOST_BYTES} bytes", url)
    return data
