"""Routes each model call to an upstream, directly or through Envoy, and detects whether Envoy has stopped.

A call contains the name of an upstream or of a group of upstreams. For a group, this module decides the order in which
the call tries the upstreams. An upstream that fails repeatedly comes last for a while. Behind Envoy, Envoy tries the
upstreams of a group (`envoy/several.py`). `client.py` makes the calls, and `engine/exchange/model_routes.py` selects
the upstream for a model.

When the model call of a background response breaks, the cause may be the model server or a dead Envoy. If Envoy has
died, `engine/running/workers.py` runs the response again. To find the cause, the process keeps one idle connection to
Envoy's model listener while the response runs. A model server ends only its call, but a dead Envoy ends all connections
at the same time. Envoy also closes an idle connection after a while, and this module then connects again. A hanging
Envoy ends no connection, so this module also sends Envoy a request.

Invariants: a call goes only to the upstreams that it names, and to each of them at most once. After an upstream has
sent a usable response, the call tries no other upstream. If no upstream sends one, the caller gets the last upstream's
response or failure. Only an upstream with `auth: passthrough` gets the client's credential. Each `EnvoyDoorWatch` has
at most one idle connection, and closes it when the background response ends. The request that detects a hanging Envoy
has a timeout.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog
from msgspec.structs import replace

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import Upstream, UpstreamAnswer, UpstreamCallFailed
from antiphon.types.transport import BACKEND_HEADER, TRIED_HEADER, UPSTREAM_HEADER, Headers
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.http import UpstreamTarget

_log = structlog.get_logger(__name__)

# After three failed calls in a row, a call tries the upstream last for ten seconds.
_FAILURES, _LEFT_OUT = 3, 10.0
_NOBODY_THERE = frozenset({502, 503, 504})
_CONNECT_SECONDS = 1.0
_AGAIN_SECONDS = 0.1
_ANSWER_SECONDS = 2.0
_QUESTION = b"GET / HTTP/1.1\r\nhost: model-door\r\nconnection: close\r\n\r\n"
"""A request to the model listener. Any response shows that Envoy runs."""
_GRACE = 1.0
"""If the idle connection and a model call's connection end within this many seconds, the watch assumes that Envoy ended
both."""


@dataclass
class _WeightedUpstream:
    name: str
    upstream: Upstream
    weight: int
    passthrough: bool
    failures: int = 0
    left_out_until: float = 0.0


@dataclass
class _Answered:
    """A response, with headers that name the upstream and the number of tries."""

    answer: UpstreamAnswer
    status: int
    headers: Headers

    def body(self) -> AsyncIterator[bytes]:
        return self.answer.body()


class SeveralUpstreams:
    """Calls the upstreams of a group, one after another, until one answers.

    Without `weights`, a call tries the upstreams in the order of `upstreams`. With `weights`, one for each upstream,
    each call chooses a random order in which a higher weight tends to come first. `passthrough` has the names of the
    upstreams that get the client's Authorization header.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        weights: Sequence[int] = (),
        *,
        passthrough: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self._weighted = bool(weights)
        self._members = [
            _WeightedUpstream(name, upstream, weight, name in passthrough)
            for (name, upstream), weight in zip(upstreams.items(), weights or [1] * len(upstreams), strict=True)
        ]
        self._clock = clock
        self._chance = chance or random.Random()

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:
        """Call the upstreams one after another. Yields the first usable response, or the last upstream's response if
        none is usable.

        A response with the status 429 or 5xx is not usable. The headers `antiphon-upstream` and `x-antiphon-tried` name
        the upstream that answered, and the number of tries. Raises the `UpstreamCallFailed` of the last upstream.
        """
        order = self._order()
        for tried, member in enumerate(order, 1):
            last = tried == len(order)
            async with AsyncExitStack() as stack:
                try:
                    answer = await stack.enter_async_context(member.upstream.call(_for(request, member)))
                except UpstreamCallFailed as failure:
                    self._note(member, answered=False)
                    if last:
                        raise
                    self._tell(member, order[tried], str(failure))
                    continue
                self._note(member, answered=answer.status not in _NOBODY_THERE)
                if not last and (answer.status == 429 or answer.status >= 500):
                    self._tell(member, order[tried], f"status {answer.status}")
                    continue
                own = (UPSTREAM_HEADER, TRIED_HEADER)
                headers = tuple(pair for pair in answer.headers if pair[0] not in own)
                said = ((UPSTREAM_HEADER, member.name), (TRIED_HEADER, str(tried)))
                yield _Answered(answer, answer.status, (*headers, *said))
                return

    def _order(self) -> list[_WeightedUpstream]:
        """Return all upstreams in the order in which a call tries them. Upstreams that failed repeatedly come last."""
        now = self._clock()
        members = self._members
        if self._weighted:
            # The order is random, as if upstreams were drawn one after another by weight.
            members = sorted(members, key=lambda member: self._chance.expovariate(member.weight))
        # Sorting is stable, so the other upstreams keep their order.
        return sorted(members, key=lambda member: member.left_out_until > now)

    def _note(self, member: _WeightedUpstream, *, answered: bool) -> None:
        member.failures = 0 if answered else member.failures + 1
        if member.failures >= _FAILURES:
            member.failures = 0
            member.left_out_until = self._clock() + _LEFT_OUT

    @staticmethod
    def _tell(member: _WeightedUpstream, after: _WeightedUpstream, cause: str) -> None:
        _log.warning("upstream_passed_over", upstream=member.name, next=after.name, cause=cause)


def _for(request: UpstreamRequest, member: _WeightedUpstream) -> UpstreamRequest:
    """Return the request for this upstream. The result contains the client's credential only if the upstream has `auth:
    passthrough`."""
    headers = request.headers
    if not member.passthrough:
        headers = tuple(pair for pair in headers if pair[0] != "authorization")
    return replace(request, headers=headers, upstream=member.name, tries=1)


class UpstreamPool:
    """Implements `Upstream` for a process that calls the upstreams directly, not through Envoy.

    `upstreams` maps names to upstreams, and `several` maps names to groups of upstreams. A call with an unknown name
    raises `KeyError`, because that would be a bug.
    """

    def __init__(
        self, upstreams: Mapping[str, HttpUpstream], several: Mapping[str, SeveralUpstreams] | None = None
    ) -> None:
        self._upstreams = dict(upstreams)
        self._callable: dict[str, HttpUpstream | SeveralUpstreams] = {**self._upstreams, **(several or {})}

    def call(self, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """Call the upstream or the group of upstreams that `request.upstream` names. See `Upstream.call`."""
        return self._callable[request.upstream].call(request)

    async def aclose(self) -> None:
        """Close the connections to all upstreams."""
        await asyncio.gather(*(upstream.aclose() for upstream in self._upstreams.values()))


class ModelDoor:
    """Implements `Upstream` for a process that calls the upstreams through Envoy's model listener.

    The header `x-antiphon-backend` contains the name of the upstream for Envoy. A call of the upstream `default` has no
    such header.
    """

    def __init__(self, door: HttpUpstream) -> None:
        self._door = door

    def call(self, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """Call the upstream that `request.upstream` names, through Envoy. See `Upstream.call`."""
        if request.upstream != "default":
            request = replace(request, headers=(*request.headers, (BACKEND_HEADER, request.upstream)))
        return self._door.call(request)

    async def aclose(self) -> None:
        """Close the connections to Envoy."""
        await self._door.aclose()


class EnvoyDoorWatch:
    """Detects whether Envoy has stopped, by one idle connection to Envoy's model listener. Implements `DoorWatch`.
    `watch_door` creates an `EnvoyDoorWatch`."""

    def __init__(self, target: UpstreamTarget, *, grace: float, answer: float) -> None:
        self._target = target
        self._grace = grace
        self._answer_seconds = answer
        self._gone_at = float("-inf")
        self._noticed = asyncio.Event()
        self.tried = asyncio.Event()
        """An event that is set when the first attempt to connect has succeeded or failed."""

    async def gone(self, at: float) -> bool:
        """Return whether Envoy closed or refused the idle connection at about the time `at`, or hangs now. `at` is a
        time of the event loop's clock."""
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
        """Keep one idle connection to Envoy open, and connect again whenever it ends. Runs until its task is
        cancelled."""
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
    """Watch Envoy's model listener during the `async with` block.

    If Envoy does not answer a request within `answer` seconds, the watch assumes that Envoy hangs. If the idle
    connection and a model call end within `grace` seconds, the watch assumes that Envoy ended both.
    """
    watch = EnvoyDoorWatch(target, grace=grace, answer=answer)
    task = asyncio.get_running_loop().create_task(watch.run())
    try:
        await watch.tried.wait()
        yield watch
    finally:
        task.cancel()
        await asyncio.wait({task})
