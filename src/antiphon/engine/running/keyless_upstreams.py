"""Finds out whether an upstream accepts requests without a key, and caches the answer.

Lives here: the probe, and the cache. Not here: the use of the answer (`engine/exchange/queueing.py`).

A background response runs without its client, and by default the sidecar does not store clients' keys. Some servers
(Ollama, llama.cpp, a private vLLM) accept requests without a key. The probe is an empty chat request without any data
of a client, because servers check the key before the request body. `GET /models` proves less, because some servers list
their models without a key.

Invariants: the cache holds only clear answers. At most one probe per upstream runs at a time, and each probe has a time
limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import Upstream, UpstreamCallFailed

_log = structlog.get_logger(__name__)

_REMEMBERED = 300.0
_SECONDS = 5.0
# These statuses mean that the upstream rejected the request body, not the missing key.
_ABOUT_THE_REQUEST = frozenset({400, 404, 405, 413, 415, 422})
_ABOUT_THE_KEY = frozenset({401, 402, 403, 407})


class Keyless:
    """Probes upstreams without a key, and caches each clear answer for `_REMEMBERED` seconds."""

    def __init__(
        self, upstream: Upstream, clock: Callable[[], float] = time.monotonic, *, seconds: float = _SECONDS
    ) -> None:
        """`seconds`: the time limit of each HTTP request of a probe."""
        self._upstream = upstream
        self._clock = clock
        self._seconds = seconds
        self._known: dict[str, tuple[float, bool]] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    async def ask(self, upstream: str) -> bool | None:
        """Whether this upstream accepts requests without a key. None: the probe gave no clear answer."""
        async with self._asking.setdefault(upstream, asyncio.Lock()):
            known = self._known.get(upstream)
            if known is not None and self._clock() < known[0]:
                return known[1]
            answer = await self._learn(upstream)
            if answer is not None:
                self._known[upstream] = (self._clock() + _REMEMBERED, answer)
                _log.info("upstream_key_needed", upstream=upstream, needed=not answer)
            return answer

    async def _learn(self, upstream: str) -> bool | None:
        status = await self._status(upstream, "POST", "/chat/completions", b'{"messages":[],"max_tokens":1}')
        if 200 <= status < 300 or status in _ABOUT_THE_REQUEST:
            return True
        if status in _ABOUT_THE_KEY:
            return False
        if status == 500:
            # Some servers answer an empty chat request with 500. `GET /models` shows whether such a server requires a
            # key on every path.
            status = await self._status(upstream, "GET", "/models", b"")
            return True if 200 <= status < 300 else False if status in _ABOUT_THE_KEY else None
        return None

    async def _status(self, upstream: str, method: str, path: str, body: bytes) -> int:
        """Send the request and return the answer's status. 0: the upstream sent no answer in time."""
        headers = (("content-type", "application/json"), ("accept", "application/json"))
        request = UpstreamRequest(method, path, headers, body, "", False, upstream)
        try:
            async with asyncio.timeout(self._seconds), self._upstream.call(request) as answer:
                return answer.status
        except (UpstreamCallFailed, TimeoutError) as failure:
            _log.warning("upstream_not_asked", upstream=upstream, error=str(failure) or "no answer in time")
            return 0
