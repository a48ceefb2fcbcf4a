"""Defines who sends a request, and what the client key allows.

Lives here: the values, the checks of what a key allows, and the port through which a process finds a key. Not here:
how a request's headers become a caller (`doors/owners.py`), the keys of the settings (`app/keys.py`), the stored keys
(`stores/client_keys.py`, `engine/running/key_ring.py`).

Invariants: no value holds a token. The owner ids of different sources never collide, because each source has a prefix:
`b:` (hash of a bearer token), `h:` (trusted header), `n:` (name of a key's owner).
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final, Protocol

from msgspec import Struct

from antiphon.errors import InvalidRequest

NAMED: Final = "n:"
"""The prefix of an owner who has a name in the settings."""


class Access(Struct, frozen=True):
    """What a client key may use. Both lists hold case-sensitive globs (`qwen*`). An empty list allows everything."""

    models: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()

    def allows_model(self, model: str) -> bool:
        """Whether a request may name this model."""
        return _fits(model, self.models)

    def check_tool(self, kind: str, param: str | None = None) -> None:
        """Raise `InvalidRequest` when a client may not use tools of this type (`web_search`, `mcp`). `param`: the
        request's field that names it."""
        if not _fits(kind, self.tools):
            raise InvalidRequest(
                f"Your API key does not allow tools of type '{kind[:64]}'. Send the request without it, or ask the "
                "operator for a key that allows it.",
                param=param,
                code="tool_not_allowed",
            )

    def check_tools(self, kinds: Iterable[str]) -> None:
        """Check the types of all tools that a request declares, in order. Raises `InvalidRequest`."""
        if self.tools:
            for number, kind in enumerate(kinds):
                self.check_tool(kind, f"tools[{number}]")


EVERYTHING: Final = Access()


class Caller(Struct, frozen=True):
    """Who sends a request. `owner` is the id that stored data has, `name` its readable form without a prefix.

    `team` and `key_id` are empty where the source of owners has none. `owner` is empty for a key without a name, until
    the source of owners gives one.
    """

    owner: str
    name: str = ""
    team: str = ""
    key_id: str = ""
    access: Access = EVERYTHING


NO_CALLER: Final = Caller("")
"""The caller of every request to a public path, such as `/health`. Such a request has no owner."""


class ClientKey(Struct, frozen=True):
    """A client key that an operator created at run time, without its token.

    `id` is `key_…`, and `prefix` the first characters of the token. Times are seconds since the epoch. A key without
    `expires_at` never expires.
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


class KnownKeys(Protocol):
    """The client keys that a process accepts. A `dict` that maps token digests to callers satisfies this protocol."""

    def get(self, digest: bytes, /) -> Caller | None:
        """The caller of the key whose token has this SHA-256; None when there is no such key. Raises `Unavailable`
        when the process cannot tell."""


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
