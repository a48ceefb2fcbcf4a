"""Derives the caller of a request from its headers: the owner of its data, and what the client's key allows.

This module does not decide whether a header is trustworthy. Before the servers call this module, they remove or refuse
headers that a client could forge.

Invariant: an owner name never contains a credential. The owner name for a bearer token contains a keyed hash
(HMAC-SHA-256) of the token. So the database holds no tokens, and an attacker without the key cannot test guessed
tokens.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final, Literal

from antiphon.engine.ports.callers import Caller, KnownKeys, KnownTokens
from antiphon.errors import Unauthorized
from antiphon.types.transport import Headers, header_value

_ANONYMOUS: Final = "anonymous"
_SINGLE: Final = "single"
_CHALLENGE: Final = (("www-authenticate", "Bearer"),)


@dataclass(frozen=True, slots=True)
class OwnerResolver:
    """Derives the caller of a request.

    `source` selects the owner. With `bearer`, the owner is a keyed hash of the bearer token, and requests without a
    token share one owner. With `header`, the owner is the value of the trusted header `header`. With `single`, all
    requests have the same owner. `client_keys` finds the caller of each accepted token by the token's SHA-256 digest.
    When `client_keys` is set, all other tokens are refused. A caller in `client_keys` without an owner gets the owner
    from `source`. With `jwt`, `tokens` finds the caller of the bearer token.
    """

    source: Literal["bearer", "header", "single", "jwt"]
    header: str = ""
    key: bytes = b""
    client_keys: KnownKeys | None = None
    tokens: KnownTokens | None = None
    _keyed: hmac.HMAC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Copying an HMAC that already has the key costs half of creating one.
        object.__setattr__(self, "_keyed", hmac.new(self.key, digestmod="sha256"))

    def resolve(self, headers: Headers) -> Caller:
        """Return the caller of the request that has these headers.

        Raises `Unauthorized` when the trusted header is absent. `resolve` also raises `Unauthorized` when client keys
        are configured and the request's token is not one of them. With `jwt`, it raises `Unauthorized` when the token
        is absent or not valid.
        """
        if self.tokens is not None:
            return self.tokens.caller_of(_needed(headers))
        caller = self._presented(headers, self.client_keys) if self.client_keys is not None else None
        return caller if caller is not None and caller.owner else Caller(self._owner(headers))

    def _owner(self, headers: Headers) -> str:
        """Return the owner that `source` selects. This method ignores client keys."""
        if self.source == "single":
            return _SINGLE
        if self.source == "header":
            value = header_value(headers, self.header)
            if not value:
                raise Unauthorized(
                    "The request carries no identity. Requests must pass the gateway's authentication.",
                    code="missing_identity",
                )
            # Databases accept only valid text, so bytes that are not UTF-8 are written as escapes.
            return "h:" + value.encode(errors="surrogateescape").decode(errors="backslashreplace")
        token = _bearer(headers)
        if not token:
            return _ANONYMOUS
        digest = self._keyed.copy()
        digest.update(token)
        return "b:" + digest.hexdigest()[:40]

    def _presented(self, headers: Headers, keys: KnownKeys) -> Caller:
        """Return the caller of the client key in the request. Raises `Unauthorized` without a key or with an unknown
        key. Raises `Unavailable` when the sidecar cannot read the keys."""
        token = _needed(headers)
        # A lookup by digest leaks no token through its timing, because a client without the token cannot choose the
        # digest.
        found = keys.get(hashlib.sha256(token).digest())
        if found is None:
            raise Unauthorized("Incorrect API key provided.", code="invalid_api_key", headers=_CHALLENGE)
        return found


def _needed(headers: Headers) -> bytes:
    """The bearer token of the request. Raises `Unauthorized` when the request has none."""
    token = _bearer(headers)
    if not token:
        raise Unauthorized(
            "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.",
            code="missing_api_key",
            headers=_CHALLENGE,
        )
    return token


def _bearer(headers: Headers) -> bytes:
    """The bearer token of the request; empty when the request has none."""
    scheme, _, token = (header_value(headers, "authorization") or "").partition(" ")
    return token.strip().encode(errors="surrogateescape") if scheme.lower() == "bearer" else b""
