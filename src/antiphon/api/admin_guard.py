"""Checks the admin token of requests to the admin API.

Lives here: the answer to a wrong token, and its log line. Not here: the limit on failed attempts
(`api/failed_attempts.py`), the comparison of tokens (`engine/ports/callers.py`), which paths have the check
(`api/admin.py`), the token's origin (`app/keys.py`).

Invariants: a missing token and every wrong token get the same answer. Failed attempts never lock out the admin token.
A process writes at most one log line a minute about failed attempts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import structlog

from antiphon.api.failed_attempts import FailedAttempts
from antiphon.engine.ports.callers import AdminToken
from antiphon.errors import Unauthorized
from antiphon.types.transport import Headers, bearer_token

_LOG_SECONDS = 60.0
_log = structlog.get_logger(__name__)


class AdminGuard:
    """The check of one process. The failed requests that `attempts` allows get a 401, and further ones a 429."""

    def __init__(
        self,
        token: AdminToken,
        attempts: FailedAttempts | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._token = token
        self._attempts = attempts or FailedAttempts()
        self._clock = clock
        self._logged_at = -math.inf

    def check(self, headers: Headers) -> None:
        """Raise `Unauthorized`, or after too many failed attempts `ApiError` (429), unless the bearer token is the
        admin token."""
        if self._token.equals(bearer_token(headers)):
            return
        now = self._clock()
        if now >= self._logged_at + _LOG_SECONDS:
            self._logged_at = now
            _log.warning(
                "admin_token_refused",
                advice="a client called the admin API without the admin token; further attempts of this minute are not "
                "logged",
            )
        self._attempts.add("Too many requests without a valid admin token.")
        raise Unauthorized(
            "The admin API needs the admin token. Send it as 'Authorization: Bearer ADMIN_TOKEN'.",
            code="invalid_admin_token",
            headers=(("www-authenticate", "Bearer"),),
        )
