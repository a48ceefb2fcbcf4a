"""Whose request it is.

Lives here: how an owner name is derived from a request's headers. Not here: whether a header may be trusted (the
doors strip or refuse what a client could forge before they ask).

Invariant: an owner name never contains a credential: a bearer token enters only through a keyed hash, so the
database neither holds tokens nor lets anybody test guesses without the key.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal

from antiphon.errors import Unauthorized
from antiphon.types.transport import Headers, header_value

__all__ = ["OwnerResolver"]

_ANONYMOUS = "anonymous"
_SINGLE = "single"


@dataclass(frozen=True, slots=True)
class OwnerResolver:
    """Derives the owner of a request.

    `source` is `bearer` (keyed hash of the token; requests without one share one owner), `header` (the value of
    the trusted header `header`) or `single`.
    """

    source: Literal["bearer", "header", "single"]
    header: str = ""
    key: bytes = b""

    def resolve(self, headers: Headers) -> str:
        """The owner of a request with these headers; raises `Unauthorized` when the trusted header is absent."""
        if self.source == "single":
            return _SINGLE
        if self.source == "header":
            value = header_value(headers, self.header)
            if not value:
                raise Unauthorized(
                    "The request carries no identity. Requests must pass the gateway's authentication.",
                    code="missing_identity",
                )
            # Databases take text only: a value that is not UTF-8 is named by its escaped bytes.
            return "h:" + value.encode(errors="surrogateescape").decode(errors="backslashreplace")
        authorization = header_value(headers, "authorization") or ""
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return _ANONYMOUS
        return "b:" + hmac.new(self.key, token.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()[:40]
