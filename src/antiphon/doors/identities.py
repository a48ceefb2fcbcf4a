"""Finds the caller of an issuer's token, and remembers the tokens that were checked.

Lives here: the memory of checked tokens, and the errors that clients get. Not here: the check itself
(`doors/token_check.py`), reading the issuer's keys (`engine/running/issuer_keys.py`).

Invariants: a remembered token is accepted only until it ends, and only with the key set that checked it. The memory
holds the digests of at most `MOST_TOKENS` tokens, and no token. Nothing is logged.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Final, Protocol

from antiphon.doors.token_check import TokenKeys, TokenRefused, TokenRules, UnknownKey, check_token
from antiphon.engine.ports.callers import Caller
from antiphon.errors import Unauthorized, Unavailable

MOST_TOKENS: Final = 4096
_CHALLENGE: Final = (("www-authenticate", 'Bearer error="invalid_token"'),)


class HeldKeySet(Protocol):
    """The issuer's keys from this process's last successful download."""

    @property
    def keys(self) -> TokenKeys | None:
        """The keys; None until the first download succeeds. The property returns the same object until the keys
        change."""

    def read_soon(self) -> float:
        """Request another download of the keys, because a token names an unknown key. Returns the seconds until newer
        keys may be available. Returns 0 if the current keys are so new that the unknown key cannot exist."""


class Identities:
    """Finds the caller of a token from the issuer, and remembers checked tokens. Implements `KnownTokens`."""

    def __init__(
        self, held: HeldKeySet, rules: TokenRules, *, most: int = MOST_TOKENS, clock: Callable[[], float] = time.time
    ) -> None:
        self._held = held
        self._rules = rules
        self._most = most
        self._clock = clock
        self._checked_with: TokenKeys | None = None
        self._checked: dict[bytes, tuple[Caller, float]] = {}

    def caller_of(self, token: bytes, /) -> Caller:
        """See `KnownTokens.caller_of`."""
        keys = self._held.keys
        if keys is None:
            raise _cannot_tell(1.0)
        if keys is not self._checked_with:
            # A key may be gone because it was stolen.
            self._checked.clear()
            self._checked_with = keys
        now, digest = self._clock(), hashlib.sha256(token).digest()
        known = self._checked.get(digest)
        if known is not None and now < known[1]:
            return known[0]
        try:
            found = check_token(token, keys, self._rules, now)
        except UnknownKey as unknown:
            seconds = self._held.read_soon()
            if seconds > 0:
                raise _cannot_tell(seconds) from None
            raise _refusal(unknown) from None
        except TokenRefused as refused:
            self._checked.pop(digest, None)
            raise _refusal(refused) from None
        if len(self._checked) >= self._most:
            del self._checked[next(iter(self._checked))]
        self._checked[digest] = found
        return found[0]


def _refusal(refused: TokenRefused) -> Unauthorized:
    return Unauthorized(f"The token was not accepted. {refused.reason}", code="invalid_token", headers=_CHALLENGE)


def _cannot_tell(seconds: float) -> Unavailable:
    return Unavailable(
        "The server cannot check your token, because it has not read the issuer's keys yet. Try again later.",
        code="keys_unavailable",
        headers=(("retry-after", str(max(1, math.ceil(seconds)))),),
    )
