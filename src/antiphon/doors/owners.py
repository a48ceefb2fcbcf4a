"""Derives the owner of a request from its headers.

Lives here: the rule from headers to an owner name. Not here: whether a header is trustworthy (the servers remove or
refuse headers that a client could forge before they call this module).

Invariant: an owner name never contains a credential. It contains only a keyed hash of a bearer token. So the database
holds no tokens, and without the key an attacker cannot test guesses.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final, Literal

from antiphon.errors import Unauthorized
from antiphon.types.transport import Headers, header_value

_ANONYMOUS: Final = "anonymous"
_SINGLE: Final = "single"
_CHALLENGE: Final = (("www-authenticate", "Bearer"),)


@dataclass(frozen=True, slots=True)
class OwnerResolver:
    """Derives the owner of a request.

    `source` is `bearer` (keyed hash of the token; requests without a token share one owner), `header` (the value of the
    trusted header `header`) or `single`. `api_keys`, if not empty, are the SHA-256 digests of the only accepted tokens.
    """

    source: Literal["bearer", "header", "single"]
    header: str = ""
    key: bytes = b""
    api_keys: tuple[bytes, ...] = ()
    _keyed: hmac.HMAC = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Copying an HMAC that already has the key costs half of creating one.
        object.__setattr__(self, "_keyed", hmac.new(self.key, digestmod="sha256"))

    def resolve(self, headers: Headers) -> str:
        """The owner of a request with these headers.

        Raises `Unauthorized` when the trusted header is absent, or when API keys are configured and the token is not
        among them.
        """
        self._check(headers)
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

    def _check(self, headers: Headers) -> None:
        """Raise `Unauthorized` when API keys are configured and the token is not among them."""
        if not self.api_keys:
            return
        token = _bearer(headers)
        if not token:
            raise Unauthorized(
                "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.",
                code="missing_api_key",
                headers=_CHALLENGE,
            )
        digest = hashlib.sha256(token).digest()
        found = False
        # Compares all of them, whichever matches, so the time reveals nothing.
        for known in self.api_keys:
            found |= hmac.compare_digest(digest, known)
        if not found:
            raise Unauthorized("Incorrect API key provided.", code="invalid_api_key", headers=_CHALLENGE)


def _bearer(headers: Headers) -> bytes:
    """The bearer token, empty without one."""
    scheme, _, token = (header_value(headers, "authorization") or "").partition(" ")
    return token.strip().encode(errors="surrogateescape") if scheme.lower() == "bearer" else b""
