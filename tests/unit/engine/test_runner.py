"""The runner, where the request ends while there is still something to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CallUpstream, CancelReason, RequestHead, SendBody, UpstreamRequest
from antiphon.engine.ports.hosted_tools import HostedCall, ToolResult
from antiphon.engine.ports.state import UpstreamAnswer
from antiphon.engine.running.runner import Runner
from antiphon.observability.metrics import Metrics
from antiphon.translation.encode import KEEPALIVE
from antiphon.types.transport import UpstreamError, UpstreamFault
from tests.support.chat_server import event, text_stream
from tests.support.exchanges import SSE, limits, make_exchange
from tests.support.fake_envoy import DEADLINE
from tests.support.hosted_tools import ScriptedTools
from tests.support.memory_store import MemoryResponseStore


class _NoUpstream:
    """For tests that feed the exchange themselves."""

    def call(self, request: UpstreamRequest) -> UpstreamAnswer:
        raise AssertionError(request)

    async def aclose(self) -> None:
        pass


@pytest.fixture
def store() -> MemoryResponseStore:
    return MemoryResponseStore()


@pytest.fixture
async def runner(store: MemoryResponseStore) -> AsyncIterator[Runner]:
    made = Runner(store, _NoUpstream(), timeouts=TimeoutSettings(), metrics=Metrics())  # type: ignore[arg-type]
    yield made
    await made.aclose()


async def _begun(runner: Runner) -> ResponseExchange:
    """An exchange in the middle of its stream."""
    exchange = make_exchange()
    body = json.dumps({"model": "m", "input": "hi", "stream": True}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    assert isinstance([action async for action in runner.settle(exchange)][-1], CallUpstream)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(event("Hel"))
    assert [action async for action in runner.settle(exchange)]
    return exchange


@pytest.mark.parametrize("closed", [True, False], ids=["generator closed", "generator left"])
async def test_a_client_that_leaves_before_the_save_does_not_prevent_it(
    runner: Runner, store: MemoryResponseStore, closed: bool
) -> None:
    """The upstream breaks off; while its last events are sent, the client turns out to be gone as well."""
    exchange = await _begun(runner)
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.CUT, "gone"))
    left = runner.settle(exchange)
    assert isinstance(await anext(left), SendBody)
    if closed:
        await left.aclose()
    await runner.abandon(exchange, CancelReason.CLIENT_GONE)
    (record,) = store.records.values()
    assert (record.id, record.status) == (exchange.response_id, "failed")
    await left.aclose()


async def test_a_save_outlives_the_request_that_began_it(runner: Runner, store: MemoryResponseStore) -> None:
    exchange = await _begun(runner)
    begun, go = asyncio.Event(), asyncio.Event()
    save = store.save

    async def slow(record: object) -> None:
        begun.set()
        await go.wait()
        await save(record)  # type: ignore[arg-type]

    store.save = slow  # type: ignore[method-assign]
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.CUT, "gone"))

    async def settle() -> None:
        async for _ in runner.settle(exchange):
            pass

    request = asyncio.ensure_future(settle())
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await runner.abandon(exchange, CancelReason.CLIENT_GONE)
    go.set()
    await runner.aclose()
    assert [record.status for record in store.records.values()] == ["failed"]


async def test_a_process_that_stops_waits_a_moment_for_a_save_and_goes_on_with_it(
    runner: Runner, store: MemoryResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of the response is written behind that, whatever the store does."""
    monkeypatch.setattr("antiphon.engine.running.runner._LAST_SAVE_SECONDS", 0.01)
    exchange = await _begun(runner)
    go = asyncio.Event()
    save = store.save

    async def slow(record: object) -> None:
        await go.wait()
        await save(record)  # type: ignore[arg-type]

    store.save = slow  # type: ignore[method-assign]
    async with asyncio.timeout(DEADLINE):
        await runner.abandon(exchange, CancelReason.SHUTTING_DOWN)
    assert exchange.failure is not None and exchange.failure.code == "shutting_down" and not store.records
    go.set()
    await runner.aclose()
    assert [record.status for record in store.records.values()] == ["failed"]


class _Scripted:
    """An upstream whose streams are `parts`, then silence without an end. It never waits before that."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = parts
        self.status = 200
        self.headers: tuple[tuple[str, str], ...] = SSE

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:
        yield self

    async def body(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        pass


async def _driven(
    parts: Iterable[bytes],
    *,
    keepalive: float = 15.0,
    deadline: float = DEADLINE,
    until: bytes | None = None,
    **options: Any,
) -> bytes:
    """What a streaming client gets of an upstream like that; it leaves when it has got `until`."""
    runner = Runner(
        MemoryResponseStore(),
        _Scripted(parts),
        timeouts=TimeoutSettings(keepalive=keepalive),
        metrics=Metrics(),
    )
    exchange = make_exchange(**options)
    body = json.dumps({"model": "m", "input": "hi", "stream": True}).encode()
    await runner.receive(exchange, RequestHead("POST", "/v1/responses", (), "owner"), body)
    seen = b""
    async with asyncio.timeout(deadline), aclosing(runner.drive(exchange)) as sent:
        async for each in sent:
            seen += each.data if isinstance(each, SendBody) else b""
            if until is not None and until in seen:
                break
    await runner.aclose()
    return seen


@pytest.mark.parametrize("part", [b": x\n\n", b'data: {"choices":[{"delta":{"content":""}}]}\n\n', b"x"])
async def test_an_upstream_that_floods_leaves_others_their_turns(part: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in pauses, which take no time here: how fast the machine is does not matter."""
    pauses = 0

    async def pause(runner: Runner) -> None:
        nonlocal pauses
        pauses += 1
        await asyncio.sleep(0)

    monkeypatch.setattr(Runner, "let_others_go_first", pause)
    flood = part * ((512 << 10) // len(part))
    read = 0

    def parts() -> Iterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield flood

    seen = await _driven(
        parts(), deadline=20 * DEADLINE, limits=limits(no_output_bytes=1 << 20, sse_event_bytes=64 << 20)
    )
    assert b"upstream_no_output" in seen
    # From 256 KiB without output on; a piece ends with an event, so two of them may come to just under 64 KiB.
    assert pauses >= ((1 << 20) - (256 << 10)) // (64 << 10)
    assert read < 100, "what nobody has room for is not read"


async def test_large_parts_lose_nothing() -> None:
    words = b"".join(event(f"w{number} ") for number in range(5_000))
    seen = await _driven([words, *text_stream("end")[1:]])
    assert b"w0 w1 w2 " in seen and b"w4998 w4999 end" in seen


@pytest.mark.parametrize("code", ["upstream_no_output", "response_timeout"])
async def test_comments_are_no_output_and_end_in_time(code: str) -> None:
    limits = TimeoutSettings(no_output=0.1) if code == "upstream_no_output" else TimeoutSettings(response=0.1)
    assert code.encode() in await _driven([b": x\n\n"], times=limits)


async def test_a_client_is_kept_alive_while_comments_come() -> None:
    assert KEEPALIVE in await _driven([b": x\n\n"], keepalive=0.01, until=KEEPALIVE)


async def test_tools_that_take_too_long_end_with_the_response() -> None:
    cancelled = asyncio.Event()

    class Slow(ScriptedTools):
        async def run(self, call: HostedCall) -> ToolResult:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            raise AssertionError

    call = b'{"index":0,"id":"a","function":{"name":"file_search","arguments":"{}"}}'
    answer = b'data: {"choices":[{"delta":{"tool_calls":[%b]}}]}\n\n' % call
    runner = Runner(
        MemoryResponseStore(),
        _Scripted([answer, *text_stream("")[1:]]),
        timeouts=TimeoutSettings(),
        metrics=Metrics(),
        tools=Slow(),
    )
    exchange = make_exchange(times=TimeoutSettings(response=0.1), tool_types=Slow.types)
    body = json.dumps({"model": "m", "input": "hi", "stream": True, "tools": [{"type": "file_search"}]}).encode()
    await runner.receive(exchange, RequestHead("POST", "/v1/responses", (), "owner"), body)
    async with asyncio.timeout(DEADLINE):
        seen = b"".join([each.data async for each in runner.drive(exchange) if isinstance(each, SendBody)])
    assert b"response_timeout" in seen
    assert cancelled.is_set()
    await runner.aclose()
