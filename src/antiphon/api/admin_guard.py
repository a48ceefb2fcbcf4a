"""Checks the admin token of requests to the admin API, and limits failed attempts.

Lives here: the answers to a wrong token and to too many attempts, and their log line. Not here: the comparison of
tokens (`engine/ports/callers.py`), which paths have the check (`api/admin.py`), the token's origin (`app/keys.py`).

Invariants: a missing token and every wrong token get the same answer. Failed attempts never lock out the admin token.
A process writes at most one log line a minute about failed attempts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import structlog

from antiphon.engine.ports.callers import AdminToken
from antiphon.errors import ApiError, Unauthorized
from antiphon.types.transport import Headers, bearer_token

_ATTEMPTS, _SECONDS = 10, 60.0
_log = structlog.get_logger(__name__)


class AdminGuard:
    """The check of one process. The `attempts` failed requests of `seconds` get a 401, and further ones a 429."""

    def __init__(
        self,
        token: AdminToken,
        *,
        attempts: int = _ATTEMPTS,
        seconds: float = _SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._token = token
        self._attempts = attempts
        self._seconds = seconds
        self._clock = clock
        self._began = -math.inf
        self._failed = 0

    def check(self, headers: Headers) -> None:
        """Raise `Unauthorized`, or after too many failed attempts `ApiError` (429), unless the bearer token is the
        admin token."""
        if self._token.equals(bearer_token(headers)):
            return
        now = self._clock()
        if now >= self._began + self._seconds:
            self._began, self._failed = now, 0
            _log.warning(
                "admin_token_refused",
                advice="a client called the admin API without the admin token; further attempts of this minute are not "
                "logged",
            )
        self._failed += 1
        if self._failed > self._attempts:
            seconds = max(1, math.ceil(self._began + self._seconds - now))
            raise ApiError(
                f"Too many requests without a valid admin token. Try again in {seconds} seconds.",
                status=429,
                type="rate_limit_exceeded",
                code="too_many_attempts",
                headers=(("retry-after", str(seconds)),),
            )
        raise Unauthorized(
            "The admin API needs the admin token. Send it as 'Authorization: Bearer ADMIN_TOKEN'.",
            code="invalid_admin_token",
            headers=(("www-authenticate", "Bearer"),),
        )
