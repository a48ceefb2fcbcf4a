"""Defines the sender of a request (the caller), client keys, and the models and tools that a client key allows.

Lives here: callers, client keys and the admin token as values, the permissions of a key, and the port that finds a key.
Not here: how a request's headers become a caller (`doors/owners.py`), the keys in the settings (`app/keys.py`), the
stored keys (`stores/client_keys.py`, `engine/running/client_keys.py`).

Invariants: no value in this module holds a token. Owner ids of different sources never collide, because each source has
a prefix. The prefixes are `b:` (hash of a bearer token), `h:` (trusted header), `j:` (claim of a JWT) and `n:` (name of
a key's owner).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final, Protocol

from msgspec import Struct

from antiphon.errors import InvalidRequest
from antiphon.types.transport import Headers

_BETWEEN: Final = re.compile(r"[\s,]+")
NAMED: Final = "n:"
"""The prefix of an owner id that consists of the owner name of a client key."""
CLAIMED: Final = "j:"
"""The prefix of an owner id that comes from a claim of a token. Antiphon or Envoy has checked the token."""
OWNER_PREFIXES: Final = ("b:", "h:", CLAIMED, NAMED)
"""All prefixes of owner ids. With `owner.source: single` the id of the only owner has no prefix."""


_SHARED: Final = ("anonymous", "single")
_PREFIX_OF: Final = {"header": "h:", "jwt": CLAIMED, "metadata": CLAIMED}


def owner_id(text: str, source: str = "bearer") -> str:
    """Return the owner id that an operator means by an id or a plain name.

    An id has one of `OWNER_PREFIXES`, or is `anonymous` or `single`. Any other text is a name. `source` is the value of
    `owner.source`, and decides the prefix of a name: `h:` for `header`, `j:` for `jwt` and `metadata`, otherwise `n:`.
    An empty text stays empty.

        owner_id("anna")         # "n:anna"
        owner_id("anna", "jwt")  # "j:anna"
        owner_id("h:anna")       # "h:anna"
    """
    whole = not text or text.startswith(OWNER_PREFIXES) or text in _SHARED
    return text if whole else _PREFIX_OF.get(source, NAMED) + text


class Access(Struct, frozen=True):
    """The models and tool types that a client key may use, as case-sensitive globs. An empty list allows all models or
    all tools.

    For example, `Access(models=("qwen*",), tools=("web_search", "mcp"))` allows the model `qwen3` and two tools.
    """

    models: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()

    def allows_model(self, model: str) -> bool:
        """Return whether a request with this client key may name this model.

        LiteLLM calls each model of a name such as `a,b`. So the key must allow each part of a name with commas, or list
        the name without a pattern.
        """
        if "," in model and model not in self.models:
            return all(_fits(part.strip(), self.models) for part in model.split(","))
        return _fits(model, self.models)

    def check_tool(self, kind: str, param: str | None = None) -> None:
        """Raise `InvalidRequest` when the client key does not allow tools of the type `kind`, such as `web_search` or
        `mcp`.

        The error has the code `tool_not_allowed`. The error names `param`, the field of the request that declares the
        tool.
        """
        if not _fits(kind, self.tools):
            raise InvalidRequest(
                f"Your API key does not allow tools of type '{kind[:64]}'. Send the request without this tool, or ask "
                "the operator for a key that allows it.",
                param=param,
                code="tool_not_allowed",
            )

    def check_tools(self, kinds: Iterable[str]) -> None:
        """Raise `InvalidRequest` (`tool_not_allowed`) for the first tool that the client key does not allow.

        `kinds` are the types of the request's `tools`, in order. The error names `tools[i]`.
        """
        if self.tools:
            for number, kind in enumerate(kinds):
                self.check_tool(kind, f"tools[{number}]")


EVERYTHING: Final = Access()
"""The access of a caller whose key has no restriction, or who has no client key."""


class Caller(Struct, frozen=True):
    """The sender of a request. `owner` is the owner id of the sender's stored data. `name` is the sender's readable
    name.

    `team` and `key_id` are empty when the caller has no client key with these fields. The caller has an empty `owner`
    if the client key names no owner. `OwnerResolver` (`doors/owners.py`) then fills `owner` from the request's headers.

        Caller("n:anna", name="anna", team="ops", key_id="key_0198…")
    """

    owner: str
    name: str = ""
    team: str = ""
    key_id: str = ""
    access: Access = EVERYTHING


def settings_key_id(owner: str, number: int) -> str:
    """Return the id of a client key in the settings. The first key of the owner `anna` has the id `anna/1`."""
    return f"{owner}/{number}"


NO_CALLER: Final = Caller("")
"""The caller of a request to a public path, such as `/health`. Such a request has no owner."""


ADMIN: Final = Caller("admin", "admin")
"""The operator who sent the admin token. No client ever has the owner id `admin`."""


class AdminToken:
    """The admin token of the gateway, as its SHA-256. A comparison takes the same time for all tokens of the same
    length, so its duration reveals at most the length."""

    def __init__(self, token: str) -> None:
        encoded = token.encode()
        self._length = len(encoded)
        self._digest = hashlib.sha256(encoded).digest()

    def equals(self, token: bytes) -> bool:
        """Return whether `token` (without a scheme such as `Bearer`) is the admin token."""
        # Almost no client's key has this length, and each request pays for the hash.
        if len(token) != self._length:
            return False
        return hmac.compare_digest(hashlib.sha256(token).digest(), self._digest)

    def is_in(self, headers: Headers) -> bool:
        """Return whether a header `authorization` contains the admin token, with or without a scheme such as `Bearer`.

        Envoy joins the values of repeated headers with commas, so the method checks each word of a value.
        """
        for name, value in headers:
            if name == "authorization":
                for word in _BETWEEN.split(value):
                    if self.equals(word.encode(errors="surrogateescape")):
                        return True
        return False


class ClientKey(Struct, frozen=True):
    """A client key that an operator created at run time, without its token.

    `id` starts with `key_`. `owner` is an owner id (`n:anna`). `prefix` is the first characters of the token, by which
    an operator recognizes the key. Times are seconds since the epoch. A key without `expires_at` never expires. A
    rotation changes `expires_at`, but not `lifetime`: the seconds from the key's creation to its first `expires_at`.
    """

    id: str
    name: str
    owner: str
    team: str
    prefix: str
    access: Access
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    lifetime: float | None = None


class KnownKeys(Protocol):
    """The client keys that a process accepts. A `dict` that maps token digests to callers satisfies this protocol."""

    def get(self, digest: bytes, /) -> Caller | None:
        """Return the caller of the key whose token has this SHA-256 digest (32 bytes), or None without such a key.

        Raises `Unavailable` (503) when the process cannot read the stored keys.
        """


class KnownTokens(Protocol):
    """The tokens of an issuer that a process accepts."""

    def caller_of(self, token: bytes, /) -> Caller:
        """Return the caller that this token names.

        Raises `Unauthorized` (401) for an invalid token. Raises `Unavailable` (503) when the process lacks the issuer's
        keys.
        """
        ...

    def expiry_of(self, token: bytes, /) -> float:
        """Return the time in seconds since the epoch from which the process refuses this token as expired. Raises the
        same errors as `caller_of`."""
        ...

    def signer_of(self, token: bytes, /) -> str:
        """Return a hash of the issuer's key that signed this token. Raises the same errors as `caller_of`."""
        ...

    def has_signer(self, signer: str, /) -> bool:
        """Return whether the issuer still has the key with this hash. Raises `Unavailable` (503) when the process lacks
        recent keys of the issuer."""
        ...

    def is_ready(self) -> bool:
        """Return whether the process has the issuer's keys."""
        ...


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
