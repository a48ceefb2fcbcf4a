"""How a model call ends with its pump.

Lives here: `UpstreamPump.stop`. Not here: what a pump hands out (`test_runner.py`), real connections (`tests/faults`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from antiphon.engine.ports.actions import CallUpstream, SendHead, UpstreamRequest
from antiphon.engine.ports.state import UpstreamAnswer
from antiphon.engine.running.upstream_pump import UpstreamPump
from antiphon.types.transport import Headers

CALL = CallUpstream(UpstreamRequest("POST", "/chat/completions", (), b"{}", "m", True))
GUARD = 30.0


class _Answer:
    """`flood` sends without an end, otherwise nothing comes after the first part."""

    status = 200
    headers: Headers = ()

    def __init__(self, *, flood: bool) -> None:
        self._flood = flood

    async def body(self) -> AsyncGenerator[bytes, None]:
        yield b"data: [DONE]\n\n"
        while self._flood:
            yield b": x\n\n"
            await asyncio.sleep(0)
        await asyncio.Event().wait()


class _Upstream:
    """One answer without an end; `open` as long as somebody has it."""

    def __init__(self, *, flood: bool) -> None:
        self._answer = _Answer(flood=flood)
        self.open = False

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:
        self.open = True
        try:
            yield self._answer
        finally:
            self.open = False

    async def aclose(self) -> None:
        raise AssertionError("nobody closes it")


async def _begun(upstream: _Upstream) -> UpstreamPump:
    pump = UpstreamPump(upstream, CALL, lambda: asyncio.sleep(0))
    pump.start()
    assert isinstance(await pump.next(GUARD), SendHead)
    assert await pump.next(GUARD) == b"data: [DONE]\n\n"
    return pump


@pytest.mark.parametrize("flood", [False, True])
@pytest.mark.parametrize("whole", [False, True])
async def test_a_call_without_an_end_ends_with_its_pump(whole: bool, flood: bool) -> None:
    upstream = _Upstream(flood=flood)
    pump = await _begun(upstream)
    async with asyncio.timeout(GUARD):
        await pump.stop(whole=whole)
    assert not upstream.open


@pytest.mark.parametrize("flood", [False, True])
@pytest.mark.parametrize("whole", [False, True])
async def test_whoever_stops_it_may_be_cancelled_meanwhile(whole: bool, flood: bool) -> None:
    # As Envoy does: it ends its call within milliseconds of the answer's end.
    upstream = _Upstream(flood=flood)
    pump = await _begun(upstream)
    stopping = asyncio.ensure_future(pump.stop(whole=whole))
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait({stopping})
    assert stopping.cancelled()
    async with asyncio.timeout(GUARD):
        while upstream.open:
            await asyncio.sleep(0)
