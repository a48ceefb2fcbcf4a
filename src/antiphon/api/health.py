"""Whether the process lives, and whether it should get requests.

Lives here: `/health` and `/ready`. Not here: gRPC health (the ext_proc door), and what readiness consists of (given
by the composition root).

Invariant: `/health` asks nobody; `/ready` tells a stranger no more than yes or no and which of our own parts said no.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from antiphon.api.http import ApiResponse, json_response
from antiphon.errors import ApiError, StoreError

__all__ = ["Readiness", "health", "ready"]

Readiness = Callable[[], Awaitable[None]]
"""Raises `StoreError` or `Unavailable` when requests should go elsewhere."""

_SECONDS = 2.0
_NO_STORE = (("cache-control", "no-store"),)

_log = structlog.get_logger(__name__)


def health() -> ApiResponse:
    """200 for as long as the process answers at all."""
    return json_response({"status": "ok"}, headers=_NO_STORE)


async def ready(check: Readiness) -> ApiResponse:
    """200 when requests can be served, else 503 with the reason."""
    reason = ""
    try:
        async with asyncio.timeout(_SECONDS):
            await check()
    except TimeoutError:
        reason = "the store does not answer"
    except StoreError as error:
        _log.warning("not_ready", error=str(error))
        reason = "the store does not work"
    except ApiError as error:
        reason = error.code or "unavailable"
    if reason:
        return json_response({"status": "unavailable", "reason": reason}, 503, _NO_STORE)
    return json_response({"status": "ok"}, headers=_NO_STORE)
