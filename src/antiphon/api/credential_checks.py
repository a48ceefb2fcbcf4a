"""Checks the admin token of requests to the admin API, and limits the failed attempts to present a token.

This module answers a wrong admin token and logs the attempt. After too many attempts, the answer is a 429.
`engine/ports/callers.py` compares tokens, and `app/keys.py` reads the admin token. `api/admin.py` lists the checked
paths, and `console/sessions.py` signs users of the console in.

`AttemptsByAddress` limits the failed sign-ins from each client address.

Invariants: a missing token and every wrong token get the same answer. Within any `seconds` seconds, at most `most`
failed attempts get a 401. Further failed attempts get a 429. A client that presents the admin token is never locked
out. A process writes at most one log line a minute about failed attempts.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

import structlog

from antiphon.engine.ports.callers import AdminToken
from antiphon.errors import ApiError, Unauthorized
from antiphon.types.transport import Headers, bearer_token

_LOG_SECONDS = 60.0
_log = structlog.get_logger(__name__)


class FailedAttempts:
    """Counts the failed attempts of the last `seconds` seconds, and refuses further attempts after `most` of them.

    `clock` returns a monotonic time in seconds.
    """

    def __init__(self, most: int = 10, *, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._most = most
        self._failed: deque[float] = deque()

    def add(self, message: str) -> None:
        """Count a failed attempt. If there were too many failed attempts before, raises an `ApiError` (429,
        `too_many_attempts`) instead of counting.

        The error's message begins with `message`. Its header `retry-after` has the seconds until the next attempt.
        """
        self.check(message)
        self._failed.append(self._clock())

    def check(self, message: str) -> None:
        """Raise an `ApiError` (429, `too_many_attempts`) if there were too many failed attempts. Counts no attempt."""
        now = self._clock()
        while self._failed and now >= self._failed[0] + self._seconds:
            self._failed.popleft()
        if len(self._failed) >= self._most:
            wait = max(1, math.ceil(self._failed[0] + self._seconds - now))
            raise ApiError(
                f"{message} Try again in {wait} seconds.",
                status=429,
                type="rate_limit_exceeded",
                code="too_many_attempts",
                headers=(("retry-after", str(wait)),),
            )


class AttemptsByAddress:
    """Limits the attempts to sign in, for each address of a client and for all clients together.

    After `most` failed attempts in `seconds` seconds, an address is blocked, so that its client cannot guess a token
    quickly. The limit for all clients together does not apply to a valid token. Otherwise one client could lock out all
    others. An empty address has no separate limit. `addresses` is the maximum number of addresses in memory.
    """

    def __init__(
        self,
        most: int = 10,
        *,
        seconds: float = 60.0,
        addresses: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._seconds = seconds
        self._addresses = addresses
        self._clock = clock
        self._all = FailedAttempts(most, seconds=seconds, clock=clock)
        # The failed attempts of each network, in the order of the last failure.
        self._failed: OrderedDict[str, FailedAttempts] = OrderedDict()

    def check(self, address: str) -> None:
        """Raise `ApiError` (429, `too_many_attempts`) if the address is blocked. A client at a blocked address gets
        this error even with a valid token."""
        if (failed := self._failed.get(_network(address))) is not None:
            failed.check("Too many failed attempts to sign in from your address.")

    def add(self, address: str) -> None:
        """Count a failed attempt. Raises `ApiError` (429, `too_many_attempts`) after too many failed attempts."""
        if network := _network(address):
            failed = self._failed.pop(network, None)
            if failed is None:
                failed = FailedAttempts(self._most, seconds=self._seconds, clock=self._clock)
            self._failed[network] = failed
            if len(self._failed) > self._addresses:
                self._failed.popitem(last=False)
            failed.add("Too many failed attempts to sign in from your address.")
        self._all.add("Too many failed attempts to sign in.")


def _network(address: str) -> str:
    """Return the network that one client controls: the IPv4 address, or the /64 network of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    mapped = found.ipv4_mapped
    return str(mapped if mapped is not None else ipaddress.IPv6Network((found, 64), strict=False))


class AdminGuard:
    """Checks the admin token of requests, for one process.

    A request without a valid token gets a 401, or a 429 if `attempts` allows no more failed attempts. The guard always
    accepts a valid token.
    """

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
        """Raise an error unless the bearer token is the admin token.

        The error is `Unauthorized` (`invalid_admin_token`), or after too many failed attempts an `ApiError` (429,
        `too_many_attempts`).
        """
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
            "The admin API needs the admin token. Send the token as 'Authorization: Bearer ADMIN_TOKEN'.",
            code="invalid_admin_token",
            headers=(("www-authenticate", "Bearer"),),
        )
