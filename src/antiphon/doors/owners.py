"""Derives the caller of a request from its headers: the owner of its data, and what the client's key allows.

Lives here: the rule from headers to a caller. Not here: whether a header is trustworthy (the servers remove or
refuse headers that a client could forge before they call this module).

Invariant: an owner name never contains a credential. It contains only a keyed hash of a bearer token. So the database
holds no tokens, and without the key an attacker cannot test guesses.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from antiphon.engine.ports.callers import Caller
from antiphon.errors import Unauthorized
from antiphon.types.transport import Headers, header_value

_ANONYMOUS: Final = "anonymous"
_SINGLE: Final = "single"
_CHALLENGE: Final = (("www-authenticate", "Bearer"),)


@dataclass(frozen=True, slots=True)
class OwnerResolver:
    """Derives the caller of a request.

    `source` is `bearer` (keyed hash of the token; requests without a token share one owner), `header` (the value of the
    trusted header `header`) or `single`. `client_keys`, if given, has the callers by the SHA-256 of
    the only accepted tokens. A caller without an owner gets one from `source`.
    """

    source: Literal["bearer", "header", "single"]
    header: str = ""
    key: bytes = b""
    client_keys: Mapping[bytes, Caller] | None = None
    _keyed: hmac.HMAC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Copying an HMAC that already has the key costs half of creating one.
        object.__setattr__(self, "_keyed", hmac.new(self.key, digestmod="sha256"))

    def resolve(self, headers: Headers) -> Caller:
        """The caller of a request with these headers.

        Raises `Unauthorized` when the trusted header is absent, or when client keys are configured and the token is not
        among them.
        """
        caller = self._presented(headers, self.client_keys) if self.client_keys is not None else None
        return caller if caller is not None and caller.owner else Caller(self._owner(headers))

    def _owner(self, headers: Headers) -> str:
        """The owner by the source of owners, whatever the key."""
        if self.source == "single":
            return _SINGLE
        if self.source == "header":
            value = header_value(headers, self.header)
            if not value:
                raise Unauthorized(
                    "The request carries no identity. Requests must pass the gateway's authentication.",
                    code="missing_identity",
                )
            # Databases accept only text: a value that is not UTF-8 becomes its escaped bytes.
            return "h:" + value.encode(errors="surrogateescape").decode(errors="backslashreplace")
        token = _bearer(headers)
        if not token:
            return _ANONYMOUS
        digest = self._keyed.copy()
        digest.update(token)
        return "b:" + digest.hexdigest()[:40]

    def _presented(self, headers: Headers, keys: Mapping[bytes, Caller]) -> Caller:
        """The caller whose key the client presents. Raises `Unauthorized`."""
        token = _bearer(headers)
        if not token:
            raise Unauthorized(
                "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.",
                code="missing_api_key",
                headers=_CHALLENGE,
            )
        # The time of the search depends on the digest alone, and a client without the token cannot choose a digest.
        found = keys.get(hashlib.sha256(token).digest())
        if found is None:
            raise Unauthorized("Incorrect API key provided.", code="invalid_api_key", headers=_CHALLENGE)
        return found


def _bearer(headers: Headers) -> bytes:
    """The bearer token, empty without one."""
    scheme, _, token = (header_value(headers, "authorization") or "").partition(" ")
    return token.strip().encode(errors="surrogateescape") if scheme.lower() == "bearer" else b""
