"""Whether the process lives, and whether it should get requests.

Lives here: `/health` and `/ready`. Not here: gRPC health (the ext_proc door), and what readiness consists of (given
by the composition root).

Invariant: `/health` asks nobody; `/ready` tells a stranger no more than yes or no and which of our own parts said no.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from antiphon.api.described import Unwell, Well
from antiphon.api.http import ApiResponse, json_response
from antiphon.errors import ApiError, StoreError
from antiphon.observability.outages import Outage

Readiness = Callable[[], Awaitable[None]]
"""Raises `StoreError` or `Unavailable` when requests should go elsewhere."""

_SECONDS = 2.0
_NO_STORE = (("cache-control", "no-store"),)

_log = structlog.get_logger(__name__)


def health() -> ApiResponse:
    """200 for as long as the process answers at all."""
    return json_response(Well("ok"), headers=_NO_STORE)


class ReadyProbe:
    """`/ready` of one process. What keeps it from being ready is logged once, not at every probe, and that it
    is ready again."""

    def __init__(self, check: Readiness) -> None:
        self._check = check
        self._outage = Outage(_log, "not_ready", "ready_again")

    @property
    def not_ready_seconds(self) -> float:
        """How long the answer has been no, from the first such probe to the last one."""
        return self._outage.seconds

    async def answer(self) -> ApiResponse:
        """200 when requests can be served, else 503 with the reason."""
        reason, cause = "", ""
        try:
            async with asyncio.timeout(_SECONDS):
                await self._check()
        except TimeoutError:
            reason = "the store does not answer"
        except StoreError as error:
            reason, cause = error.words, str(error)
        except ApiError as error:
            reason = error.code or "unavailable"
        if reason:
            self._outage.failed(kind=reason, reason=reason, **({"cause": cause} if cause else {}))
            return json_response(Unwell("unavailable", reason), 503, _NO_STORE)
        self._outage.over()
        return json_response(Well("ok"), headers=_NO_STORE)
