"""Detects whether Antiphon's own Envoy went away when a call through it breaks off.

While a background response runs, the process holds one idle connection to the model listener of Envoy. This module
interprets the end of the idle connection. `client.py` makes the calls, and `engine/running/workers.py` decides what
happens to the response.

On the call's own connection, a model server that breaks off its response and an Envoy that dies look the same. On
another connection, a broken response and a dead Envoy look different. The model server ends only the call, but a dead
Envoy (or a closed listener) ends all connections. Envoy also closes an idle connection when it is too old. After such
an end the watch connects again, and forgets the end after a moment. An Envoy that hangs ends no connection and answers
no request. So the watch also sends Envoy a request and waits for an answer.

Invariants: each watch holds at most one idle connection, and none after the watch ends. The request to Envoy has a
timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from antiphon.upstream.http import UpstreamTarget

_CONNECT_SECONDS = 1.0
_AGAIN_SECONDS = 0.1
_ANSWER_SECONDS = 2.0
_QUESTION = b"GET / HTTP/1.1\r\nhost: model-door\r\nconnection: close\r\n\r\n"
"""A request to the model listener. Any response shows that Envoy runs."""
_GRACE = 1.0
"""If two connections end within this many seconds, the watch treats their ends as one event."""


class EnvoyDoorWatch:
    """Watches one connection to Envoy's model listener. `watch_door` creates this object."""

    def __init__(self, target: UpstreamTarget, *, grace: float, answer: float) -> None:
        self._target = target
        self._grace = grace
        self._answer_seconds = answer
        self._gone_at = float("-inf")
        self._noticed = asyncio.Event()
        self.tried = asyncio.Event()
        """Set when the first connection is open or has failed."""

    async def gone(self, at: float) -> bool:
        """Return whether Envoy ended or refused the idle connection about the time `at`, or hangs now. `at` is a time
        on the event loop's clock."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                while self._gone_at < at - self._grace:
                    self._noticed.clear()
                    await self._noticed.wait()
        return self._gone_at >= at - self._grace or not await self._answers()

    async def _answers(self) -> bool:
        """Return whether Envoy answers a request."""
        try:
            async with asyncio.timeout(self._answer_seconds):
                reader, writer = await self._connect()
                try:
                    writer.write(_QUESTION)
                    return bool(await reader.read(1))
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    async def run(self) -> None:
        """Hold an idle connection, and open another one whenever it ends."""
        loop = asyncio.get_running_loop()
        while True:
            # `TimeoutError` is a subclass of `OSError`.
            with suppress(OSError):
                async with asyncio.timeout(_CONNECT_SECONDS):
                    reader, writer = await self._connect()
                self.tried.set()
                try:
                    # The watch sent no request, so the read returns only when the connection ends.
                    await reader.read(1)
                finally:
                    writer.close()
            self._gone_at = loop.time()
            self._noticed.set()
            self.tried.set()
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.unix_path is not None:
            return await asyncio.open_unix_connection(self._target.unix_path)
        url = urlsplit(self._target.base_url)
        return await asyncio.open_connection(url.hostname, url.port)


@asynccontextmanager
async def watch_door(
    target: UpstreamTarget, *, grace: float = _GRACE, answer: float = _ANSWER_SECONDS
) -> AsyncIterator[EnvoyDoorWatch]:
    """Watch Envoy's model listener during the `with` block. If Envoy does not answer within `answer` seconds, the watch
    treats it as hanging. `grace` is the tolerance in seconds when ends of connections are compared."""
    watch = EnvoyDoorWatch(target, grace=grace, answer=answer)
    task = asyncio.get_running_loop().create_task(watch.run())
    try:
        await watch.tried.wait()
        yield watch
    finally:
        task.cancel()
        await asyncio.wait({task})
