"""Routes each model call to an upstream, directly or through Envoy, and detects whether Envoy itself has stopped.

This module finds the upstream that a call names. The call reaches the upstream directly or through Envoy's model
listener. For several upstreams with one name, this module decides the order of attempts, and moves failing upstreams to
the end for a while. `client.py` makes the calls. `engine/exchange/model_routes.py` selects the upstream for a model.
Behind Envoy, Envoy itself tries several upstreams (`envoy/several.py`).

While a background response runs, the process holds one idle connection to the model listener of Envoy. This module
decides what the end of the idle connection means. `engine/running/workers.py` decides what happens to the response. On
the call's own connection, a model server that breaks off its response looks like an Envoy that dies. The idle
connection shows the difference. A model server ends only the call, but a dead Envoy (or a closed listener) ends all
connections. Envoy also closes an idle connection when it is too old. Then this module connects again. If a model call
fails more than a moment later, this module no longer takes the old idle connection's end for Envoy's death. An Envoy
that hangs ends no connection and answers no request. So this module also sends Envoy a request and waits for an answer.

Invariants: a call goes only to the upstreams that it names. One call tries no upstream twice, and tries no other
upstream after it has yielded a response. The caller gets the last upstream's response or failure unchanged. Only an
upstream with `auth: passthrough` gets the client's credential. Each `EnvoyDoorWatch` holds at most one idle connection,
and closes it when the background response ends. The request that detects a hanging Envoy has a timeout.
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
"""If two connections end within this many seconds, the watch treats their ends as one event."""


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
    """A response, with the headers that name the upstream."""

    answer: UpstreamAnswer
    status: int
    headers: Headers

    def body(self) -> AsyncIterator[bytes]:
        return self.answer.body()


class SeveralUpstreams:
    """Tries several upstreams that share one name, in their order of preference, or in random order by weight.

    `upstreams` is in the order of preference. If `weights` are given, one for each upstream, the order is random by
    weight instead. `passthrough` has the names of the upstreams that get the client's Authorization header.
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
        """Call the upstreams in order. Yields the first usable response, or else the response of the last upstream.

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
        """Return all upstreams in the order to try them. Upstreams that failed repeatedly come last."""
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
    """Return the call for this upstream, without the client's credential unless the upstream has `auth:
    passthrough`."""
    headers = request.headers
    if not member.passthrough:
        headers = tuple(pair for pair in headers if pair[0] != "authorization")
    return replace(request, headers=headers, upstream=member.name, tries=1)


class UpstreamPool:
    """Implements `Upstream` for a process that calls each upstream itself.

    `upstreams` and `several` map the names in `UpstreamRequest.upstream` to single upstreams, and to groups of
    upstreams with one name. A call of an unknown name raises `KeyError`, because the routes name only known upstreams.
    """

    def __init__(
        self, upstreams: Mapping[str, HttpUpstream], several: Mapping[str, SeveralUpstreams] | None = None
    ) -> None:
        self._upstreams = dict(upstreams)
        self._callable: dict[str, HttpUpstream | SeveralUpstreams] = {**self._upstreams, **(several or {})}

    def call(self, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """Call the upstream that `request.upstream` names. If this is the name of a group, try the group's upstreams
        one after the other. See `Upstream.call`."""
        return self._callable[request.upstream].call(request)

    async def aclose(self) -> None:
        """Close the connections to all upstreams."""
        await asyncio.gather(*(upstream.aclose() for upstream in self._upstreams.values()))


class ModelDoor:
    """Implements `Upstream` for a process whose calls go through Envoy's model listener.

    The header `x-antiphon-backend` gives Envoy the name of the upstream, except for `default`.
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
    """Watches one connection to Envoy's model listener: implements `DoorWatch`. `watch_door` creates this object."""

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
        """Hold an idle connection, and open another connection whenever the idle connection ends. Runs until its task
        is cancelled."""
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

    If Envoy does not answer within `answer` seconds, the watch assumes that Envoy hangs. `grace` is the tolerance in
    seconds when the watch compares the times at which two connections ended.
    """
    watch = EnvoyDoorWatch(target, grace=grace, answer=answer)
    task = asyncio.get_running_loop().create_task(watch.run())
    try:
        await watch.tried.wait()
        yield watch
    finally:
        task.cancel()
        await asyncio.wait({task})
