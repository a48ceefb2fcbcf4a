"""Opens the check of an issuer's tokens, for `owner.source: jwt`, and finds the claims of `owner.source: metadata`.

Lives here: building the parts from the settings, in one process. Not here: the check of a token
(`doors/issuer_tokens.py`), the memory of checked tokens (`doors/issuer_tokens.py`), reading the issuer's keys
(`upstream/issuer.py`), when they are read (`engine/running/issuer_keys.py`).

The extra `jwt` is imported only here, so that a gateway with another source of owners needs no such package.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from antiphon.app.trust import trusted
from antiphon.config.owners import JwtSettings, OwnerSettings
from antiphon.doors.owners import ClaimNames, LeftClaims
from antiphon.engine.ports.callers import KnownTokens
from antiphon.engine.running.issuer_keys import IssuerKeys
from antiphon.extras import extra_missing
from antiphon.upstream.issuer import read_discovered, read_file, read_url


@asynccontextmanager
async def open_identities(settings: JwtSettings) -> AsyncIterator[KnownTokens]:
    """Yield the check of the issuer's tokens. Until the context ends, a task reads the issuer's keys again at
    intervals. Raises `ConfigError`."""
    try:
        from antiphon.doors.issuer_tokens import Identities, TokenKeys, TokenRules, read_keys
    except ImportError:
        raise extra_missing("owner.source: jwt", "jwt") from None

    def read(data: bytes) -> TokenKeys:
        return read_keys(data, settings.algorithms)

    held = IssuerKeys(_fetch(settings), read, refresh=settings.refresh)
    rules = TokenRules(
        settings.issuer,
        settings.audience,
        settings.algorithms,
        ClaimNames(settings.owner_claim, settings.name_claim, settings.team_claim),
        settings.leeway,
    )
    await held.open()
    try:
        yield Identities(held, rules)
    finally:
        await held.aclose()


def left_claims(owner: OwnerSettings) -> LeftClaims | None:
    """Where a filter of Envoy leaves the claims of the client, for `owner.source: metadata`."""
    if owner.source != "metadata":
        return None
    left = owner.metadata
    return LeftClaims(
        ClaimNames(left.owner_claim, left.name_claim, left.team_claim), left.namespace, left.key, owner.header
    )


def _fetch(settings: JwtSettings) -> Callable[[], Awaitable[bytes]]:
    if settings.jwks and "://" not in settings.jwks:
        return partial(read_file, Path(settings.jwks))
    tls = trusted("owner.jwt.ca_file", settings.ca_file)
    if settings.jwks:
        return partial(read_url, settings.jwks, tls)
    return partial(read_discovered, settings.issuer, tls)
