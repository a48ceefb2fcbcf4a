"""Derives the caller of a request from its headers: the owner of its data, and what the client's key allows.

This module does not decide whether a header is trustworthy. Before the servers call this module, they remove or refuse
headers that a client could forge.

Invariant: an owner name never contains a credential. The owner name for a bearer token contains a keyed hash
(HMAC-SHA-256) of the token. So the database holds no tokens, and an attacker without the hash key cannot test guessed
tokens.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from antiphon.engine.ports.callers import CLAIMED, NO_CALLER, AdminToken, Caller, KnownKeys, KnownTokens
from antiphon.errors import Unauthorized
from antiphon.types.transport import Headers, bearer_token, header_value

_ANONYMOUS: Final = "anonymous"
SINGLE: Final = "single"
_CHALLENGE: Final = (("www-authenticate", "Bearer"),)
_LONGEST_OWNER, _LONGEST_TEAM = 200, 64


@dataclass(frozen=True, slots=True)
class ClaimNames:
    """The names of the token's claims that contain the owner's id, name and team."""

    owner: str = "sub"
    name: str | None = None
    team: str | None = None

    def caller(self, claims: Mapping[str, object]) -> Caller | None:
        """The caller whom these claims name. The result is None when the owner's claim is absent or not a usable text.
        The result is also None when the team's claim is present but not a usable text. Such a caller would escape the
        limits of its team."""
        owner = _text(claims, self.owner, _LONGEST_OWNER)
        name, team = _text(claims, self.name, _LONGEST_OWNER), _text(claims, self.team, _LONGEST_TEAM)
        has_team = self.team is not None and claims.get(self.team) not in (None, "")
        if not owner or (has_team and not team):
            return None
        return Caller(CLAIMED + owner, name or owner, team)


@dataclass(frozen=True, slots=True)
class LeftClaims:
    """Says where an Envoy filter writes the claims of a token that the filter checked. The filter writes them to the
    metadata namespace `namespace`, under `key` if `key` is not empty. The HTTP server reads the same claims as JSON
    from the header `header`, because HTTP has no metadata."""

    names: ClaimNames
    namespace: str
    key: str
    header: str

    def caller(self, headers: Headers, metadata: Mapping[str, Mapping[str, object]] | None) -> Caller:
        """The caller of the request. `metadata` is None if the request came by HTTP. Raises `Unauthorized`."""
        if metadata is None:
            claims = _decoded(header_value(headers, self.header) or "")
        else:
            left = metadata.get(self.namespace, {})
            claims = left.get(self.key) if self.key else left
        found = self.names.caller(claims) if isinstance(claims, Mapping) else None
        if found is None:
            raise _no_identity()
        return found


class Adopts(Protocol):
    """Moves data that was stored under a token's hash to the named owner of this token
    (`engine/running/adoption.py`)."""

    seen: set[str]

    def presented(self, caller: Caller, old: str) -> None:
        """Queue a move of data to this caller's owner. The resolver calls this method if the id of the caller's key is
        not in `seen`. `old` is the owner id that contains the token's hash."""


@dataclass(frozen=True, slots=True)
class OwnerResolver:
    """Derives the caller of a request.

    `source` determines how the resolver finds the owner. With `bearer`, the owner is a keyed hash of the bearer token,
    and requests without a token share one owner. With `header`, the owner is the value of the trusted header `header`.
    With `single`, all requests have the same owner. `client_keys` finds the caller of each accepted token by the
    token's SHA-256 digest. When `client_keys` is set, all other tokens are refused. A caller in `client_keys` without
    an owner gets the owner from `source`. If `source` is `jwt`, `tokens` finds the caller of the bearer token. If
    `source` is `metadata`, `claims` finds the caller in the metadata that an Envoy filter wrote. The resolver tells
    `adopts` about the first request with each key of a named owner. The resolver refuses the admin token (`admin`),
    because this token must never reach an upstream or become the name of an owner.
    """

    source: Literal["bearer", "header", "single", "jwt", "metadata"]
    header: str = ""
    key: bytes = b""
    client_keys: KnownKeys | None = None
    tokens: KnownTokens | None = None
    claims: LeftClaims | None = None
    adopts: Adopts | None = None
    admin: AdminToken | None = None
    _keyed: hmac.HMAC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Copying an HMAC that already has the key costs half of creating one.
        object.__setattr__(self, "_keyed", hmac.new(self.key, digestmod="sha256"))

    def resolve(self, headers: Headers, metadata: Mapping[str, Mapping[str, object]] | None = None) -> Caller:
        """Return the caller of the request that has these headers. `metadata` holds the values that Envoy's filters
        wrote. `metadata` is None if the request came to the HTTP server.

        Raises `Unauthorized` when the trusted header is absent. `resolve` also raises `Unauthorized` when client keys
        are configured and the request's token is not one of them. With `jwt`, it raises `Unauthorized` when the token
        is absent or not valid, and with `metadata` when the claims are absent or name no owner. The admin token raises
        `Unauthorized` with every source.
        """
        if self.admin is not None and self.admin.is_in(headers):
            raise _unknown_key()
        if self.tokens is not None:
            return self.tokens.caller_of(_needed(headers))
        caller = self._presented(headers, self.client_keys) if self.client_keys is not None else None
        if caller is not None and caller.owner:
            if self.adopts is not None and caller.key_id not in self.adopts.seen:
                self.adopts.presented(caller, self._owner(headers))
            return caller
        return self.claims.caller(headers, metadata) if self.claims is not None else Caller(self._owner(headers))

    @property
    def by_gateway(self) -> bool:
        """Whether a gateway in front of Antiphon names the owners, by a trusted header or by metadata."""
        return self.source == "header" or self.claims is not None

    def named_by_gateway(self, headers: Headers) -> Caller:
        """Return the caller whom the gateway names in these headers. This method does not check client keys. Returns
        `NO_CALLER` if the gateway names no caller."""
        try:
            if self.claims is not None:
                return self.claims.caller(headers, None)
            return Caller(self._owner(headers)) if self.source == "header" else NO_CALLER
        except Unauthorized:
            return NO_CALLER

    def _owner(self, headers: Headers) -> str:
        """Return the owner that `source` selects. This method ignores client keys."""
        if self.source == "single":
            return SINGLE
        if self.source == "header":
            value = header_value(headers, self.header)
            if not value:
                raise _no_identity()
            if not value.isascii() and not _is_utf8(value):
                # Databases accept only valid text. An escaped form could be the name of another owner.
                raise Unauthorized(
                    f"The header '{self.header}' is not valid UTF-8. The gateway must send the owner's name in UTF-8.",
                    code="missing_identity",
                )
            if len(value) > _LONGEST_OWNER:
                # PostgreSQL cannot index a long text. One such owner would make the reports about all owners fail.
                raise Unauthorized(
                    f"The header '{self.header}' has more than {_LONGEST_OWNER} characters. The gateway must send a "
                    "shorter name.",
                    code="missing_identity",
                )
            return "h:" + value
        token = bearer_token(headers)
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
            raise _unknown_key()
        return found


def _unknown_key() -> Unauthorized:
    return Unauthorized("Incorrect API key provided.", code="invalid_api_key", headers=_CHALLENGE)


def _no_identity() -> Unauthorized:
    return Unauthorized(
        "The request carries no identity. Requests must pass the gateway's authentication. The claims that the "
        "settings name must be valid texts.",
        code="missing_identity",
    )


def _is_utf8(text: str) -> bool:
    """Whether the header's bytes were valid UTF-8. Other bytes are lone surrogates in the text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(claims: Mapping[str, object], name: str | None, longest: int) -> str:
    """The claim's value. The text is empty when the claim is absent, too long or not printable. Databases may refuse
    text that is not printable."""
    value = claims.get(name) if name is not None else None
    return value if isinstance(value, str) and len(value) <= longest and value.isprintable() else ""


def _needed(headers: Headers) -> bytes:
    """The bearer token of the request. Raises `Unauthorized` when the request has none."""
    token = bearer_token(headers)
    if not token:
        raise Unauthorized(
            "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.",
            code="missing_api_key",
            headers=_CHALLENGE,
        )
    return token
