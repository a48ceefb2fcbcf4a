"""Finds out which kind of server an upstream is (such as vLLM), if the settings do not name its profile.

This module requests the upstream's list of models, `translation/profiles` recognizes the kind of server from the list,
and `engine/exchange/model_routes.py` applies the profile.

Invariant: no client request waits for this. The process repeats the request for the list, with growing pauses, until
the upstream answers. The request never contains a client's credentials. Each attempt has a timeout, and no attempt
begins after `aclose`. The process logs one warning if the answer does not identify the kind of server. It also logs the
warning if the upstream does not answer for half a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

import structlog

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import Upstream, UpstreamCallFailed
from antiphon.translation.profiles import named_by_list
from antiphon.types.json import decode_any

_log = structlog.get_logger(__name__)
_FIRST_WAIT, _MAX_WAIT = 0.25, 60.0
_PATIENCE = 10.0
_WARN_SECONDS = 30.0
_MAX_BYTES = 4 << 20


class ServerIdentities:
    """Finds out which kind of server each of the upstreams in `names` is.

    For each identified upstream, this class calls `found` with the upstream's name and the profile's name. If an
    upstream does not answer for `warn_seconds`, this class logs a warning.
    """

    def __init__(
        self,
        upstream: Upstream,
        names: Iterable[str],
        found: Callable[[str, str], None],
        warn_seconds: float = _WARN_SECONDS,
    ) -> None:
        self._upstream = upstream
        self._names = tuple(names)
        self._found = found
        self._warn_seconds = warn_seconds
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start one task for each upstream. Needs a running event loop."""
        self._tasks = [asyncio.create_task(self._ask_until_answered(name)) for name in self._names]

    async def answered(self) -> None:
        """Wait until every upstream has answered once. An upstream may never answer, so the caller sets a timeout."""
        await asyncio.gather(*self._tasks)

    async def aclose(self) -> None:
        """Cancel all requests and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []

    async def _ask_until_answered(self, name: str) -> None:
        clock = asyncio.get_running_loop().time
        wait, began, warned = _FIRST_WAIT, clock(), False
        while True:
            try:
                async with asyncio.timeout(_PATIENCE):
                    profile = await self._ask(name)
            except (UpstreamCallFailed, TimeoutError):
                profile = None
            if profile:
                _log.info("upstream_identified", upstream=name, profile=profile)
                self._found(name, profile)
                return
            if not warned and (profile is not None or clock() - began >= self._warn_seconds):
                warned = True
                _log.warning(
                    "upstream_unidentified",
                    upstream=name,
                    profile="generic",
                    problem="no answer yet"
                    if profile is None
                    else "its model list does not identify the kind of server",
                    advice="Set the upstream's 'profile', which decides the request fields that Antiphon sends to the "
                    "upstream. 'antiphon doctor' suggests a profile. Set 'generic' to keep the present behavior "
                    "without this warning.",
                )
            if profile is not None:
                return
            await asyncio.sleep(wait)
            wait = min(2 * wait, _MAX_WAIT)

    async def _ask(self, name: str) -> str | None:
        """Request the upstream's list of models. Returns the name of the profile. Returns an empty string if the list
        does not identify the kind of server, and None if the upstream does not work yet."""
        headers = (("accept", "application/json"),)
        async with self._upstream.call(UpstreamRequest("GET", "/models", headers, b"", "", False, name)) as answer:
            body = bytearray()
            async for part in answer.body():
                body += part
                if len(body) > _MAX_BYTES:
                    return ""
        if answer.status >= 500:
            # Envoy sends a 5xx status while the upstream is down, and a server sends one while it loads its model.
            return None
        try:
            listed = decode_any(bytes(body))
        except ValueError:
            listed = None
        return named_by_list(listed, dict(answer.headers).get("server", ""))
