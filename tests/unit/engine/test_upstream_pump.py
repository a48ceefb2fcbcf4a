"""What a pump hands out, when others have their turn, and how a model call ends with its pump.

Not here: real connections (`tests/faults`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from antiphon.engine.ports.actions import CallUpstream, SendHead, UpstreamRequest
from antiphon.engine.ports.state import UpstreamAnswer, UpstreamCallFailed
from antiphon.engine.running.upstream_pump import UpstreamPump
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault

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


class _Parts:
    """An upstream that answers with these parts, then fails if it is told to."""

    status = 200
    headers: Headers = (("a", "b"),)

    def __init__(self, *parts: bytes, failure: Exception | None = None) -> None:
        self._parts = parts
        self._failure = failure

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:
        yield self

    async def body(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
        if self._failure is not None:
            raise self._failure

    async def aclose(self) -> None: ...


async def _all_of(upstream: _Parts) -> list[object]:
    """What a pump of pieces of eight bytes hands out behind the head; `...` where others have their turn."""
    seen: list[object] = []

    async def others() -> None:
        seen.append(...)

    pump = UpstreamPump(upstream, CALL, others, piece=8)
    pump.start()
    assert await pump.next(GUARD) == SendHead(200, (("a", "b"),))
    while isinstance(event := await pump.next(GUARD), bytes):
        seen.append(event)
    await pump.stop(whole=True)
    return [*seen, event]


@pytest.mark.parametrize(
    ("parts", "handed_out"),
    [
        ([b"1234567", b"8", b"9"], [b"1234567", b"8", ..., b"9"]),
        ([b"12345678", b"9"], [b"12345678", ..., b"9"]),
        ([b"123456789"], [b"12345678", ..., b"9"]),
        ([b"1234\n\n78\n\n"], [b"1234\n\n", b"78\n\n", ...]),
        ([b"123456\n\n9"], [b"123456\n\n", ..., b"9"]),
        ([b"1234567\n\n"], [b"1234567\n", ..., b"\n"]),
        ([b"\n\n3456789a"], [b"\n\n", b"3456789a", ...]),
        ([b"1\n\n" * 6], [b"1\n\n" * 2, b"1\n\n" * 2, ..., b"1\n\n" * 2]),
        ([b"12345678" * 2, b"x"], [b"12345678", ..., b"12345678", ..., b"x"]),
    ],
)
async def test_others_have_their_turn_after_each_piece(parts: list[bytes], handed_out: list[object]) -> None:
    assert await _all_of(_Parts(*parts)) == [*handed_out, None]


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (UpstreamCallFailed(UpstreamError(UpstreamFault.TIMED_OUT, "late")), (UpstreamFault.TIMED_OUT, "late")),
        (ValueError("a bug"), (UpstreamFault.CUT, "ValueError")),
    ],
)
async def test_what_goes_wrong_is_the_end(failure: Exception, told: tuple[UpstreamFault, str]) -> None:
    *_, error = await _all_of(_Parts(b"a", failure=failure))
    assert isinstance(error, UpstreamError) and (error.fault, error.detail) == told
