"""Detects whether Antiphon's own Envoy went away when a call through it breaks off.

Lives here: one connection to the model door that asks for nothing, held while a background response runs, and what its
end says. Not here: the calls themselves (`client.py`), what becomes of a response (`engine/running/workers.py`).

A model server that breaks off its answer and an Envoy that dies look the same on the call's own connection. They do not
on another one. What Envoy forwards can end a call. Only Envoy's own end (or a closed listener) ends all connections to
it. An idle connection that Envoy closes for its age is opened again, and forgotten after a moment. An Envoy that stands
still ends none and answers no request, so the watch asks it too.

Invariants: one idle connection at most for each watch, and none after it was left; a question ends in time.
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
"""Whatever the answer is, it is one."""
_GRACE = 1.0
"""Connections that end together do not end at the same moment."""


class EnvoyDoorWatch:
    """Made by `watch_door`."""

    def __init__(self, target: UpstreamTarget, *, grace: float, answer: float) -> None:
        self._target = target
        self._grace = grace
        self._answer_seconds = answer
        self._gone_at = float("-inf")
        self._noticed = asyncio.Event()
        self.tried = asyncio.Event()
        """Set once there is a connection, or none can be had."""

    async def gone(self, at: float) -> bool:
        """Whether Envoy went away, or was not there, about the time `at` (of the event loop), or stands still now."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                while self._gone_at < at - self._grace:
                    self._noticed.clear()
                    await self._noticed.wait()
        return self._gone_at >= at - self._grace or not await self._answers()

    async def _answers(self) -> bool:
        """Whether Envoy answers at all."""
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
        """Hold a connection, and open another one when it ends."""
        loop = asyncio.get_running_loop()
        while True:
            # A `TimeoutError` is one, too.
            with suppress(OSError):
                async with asyncio.timeout(_CONNECT_SECONDS):
                    reader, writer = await self._connect()
                self.tried.set()
                try:
                    # Nothing was asked: whatever comes is the end.
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
    """Watch the model door for as long as this is open; `answer`: seconds in which Envoy must answer. Otherwise it
    counts as hanging."""
    watch = EnvoyDoorWatch(target, grace=grace, answer=answer)
    task = asyncio.get_running_loop().create_task(watch.run())
    try:
        await watch.tried.wait()
        yield watch
    finally:
        task.cancel()
        await asyncio.wait({task})
