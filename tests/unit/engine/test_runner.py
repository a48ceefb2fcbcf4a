"""The runner, where the request ends while there is still something to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.exchange.budget import Budget
from antiphon.engine.exchange.phase import Known
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.states import FLOOD_PAUSE
from antiphon.engine.ports.actions import (
    CallUpstream,
    CancelReason,
    OnceOnly,
    RequestHead,
    ResponseRecord,
    SendBody,
    SendHead,
    UpstreamRequest,
)
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.hosted_tools import HostedCall, ToolResult
from antiphon.engine.ports.state import UpstreamAnswer
from antiphon.engine.running.idempotency import HeldKeys
from antiphon.engine.running.runner import Runner
from antiphon.errors import ApiError, OwnerFull, StoreError
from antiphon.observability.metrics import Metrics
from antiphon.stores.leases import Leases
from antiphon.translation.events.encode import KEEPALIVE
from antiphon.types.transport import UpstreamError, UpstreamFault
from tests.support.chat_server import event, text_stream
from tests.support.exchanges import SSE, limits, make_exchange
from tests.support.fake_envoy import DEADLINE
from tests.support.fake_time import in_fake_time
from tests.support.hosted_tools import ScriptedTools
from tests.support.memory_store import MemoryResponseStore
from tests.support.ports import KeyStore, make_ports


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
    made = Runner(make_ports(store, _NoUpstream(), timeouts=TimeoutSettings(), metrics=Metrics()))  # type: ignore[arg-type]
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
    assert (record.id, record.status) == (exchange.known.response_id, "failed")
    await left.aclose()


def _held_up(store: MemoryResponseStore) -> tuple[asyncio.Event, asyncio.Event]:
    """Saves wait from now on: set when one has begun, and what lets them go on."""
    begun, go = asyncio.Event(), asyncio.Event()
    save = store.save

    async def slow(record: ResponseRecord) -> None:
        begun.set()
        await go.wait()
        await save(record)

    store.save = slow  # type: ignore[method-assign]
    return begun, go


async def test_a_save_outlives_the_request_that_began_it(runner: Runner, store: MemoryResponseStore) -> None:
    exchange = await _begun(runner)
    begun, go = _held_up(store)
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
    store: MemoryResponseStore,
) -> None:
    """The line of the response is written behind that, whatever the store does."""
    ports = make_ports(store, _NoUpstream(), timeouts=TimeoutSettings(), metrics=Metrics())  # type: ignore[arg-type]
    runner = Runner(ports, last_save=0.01)
    exchange = await _begun(runner)
    _, go = _held_up(store)
    async with asyncio.timeout(DEADLINE):
        await runner.abandon(exchange, CancelReason.SHUTTING_DOWN)
    assert exchange.known.failure is not None and exchange.known.failure.code == "shutting_down" and not store.records
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
        make_ports(
            MemoryResponseStore(),
            _Scripted(parts),
            timeouts=TimeoutSettings(keepalive=keepalive),
            metrics=Metrics(),
        )
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
def test_an_upstream_that_floods_leaves_others_their_turns(part: bytes) -> None:
    """On a clock that jumps, only pauses take time: how fast the machine is does not matter."""
    flood = part * ((512 << 10) // len(part))
    read = 0

    def parts() -> Iterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield flood

    async def run() -> tuple[bytes, float]:
        limited = limits(no_output_bytes=1 << 20, sse_event_bytes=64 << 20)
        seen = await _driven(parts(), deadline=20 * DEADLINE, limits=limited)
        return seen, asyncio.get_running_loop().time()

    seen, took = in_fake_time(run())
    assert b"upstream_no_output" in seen
    # From 256 KiB without output on; a piece ends with an event, so two of them may come to just under 64 KiB.
    assert took >= ((1 << 20) - (256 << 10)) // (64 << 10) * FLOOD_PAUSE * 0.99
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
        make_ports(
            MemoryResponseStore(),
            _Scripted([answer, *text_stream("")[1:]]),
            timeouts=TimeoutSettings(),
            metrics=Metrics(),
            tools=Slow(),
        )
    )
    exchange = make_exchange(times=TimeoutSettings(response=0.1), tool_types=Slow.types)
    body = json.dumps({"model": "m", "input": "hi", "stream": True, "tools": [{"type": "file_search"}]}).encode()
    await runner.receive(exchange, RequestHead("POST", "/v1/responses", (), "owner"), body)
    async with asyncio.timeout(DEADLINE):
        seen = b"".join([each.data async for each in runner.drive(exchange) if isinstance(each, SendBody)])
    assert b"response_timeout" in seen
    assert cancelled.is_set()
    await runner.aclose()


class _Room:
    """What an owner's room says when it is asked."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.asked: list[str] = []

    async def check(self, owner: str, caller: Caller) -> None:
        self.asked.append(owner)
        if self.failure is not None:
            raise self.failure


def _known(*, stored: bool = True, replayed: bool = False) -> Known:
    known = Known()
    known.stored, known.replayed = stored, replayed
    return known


@dataclass
class _Received:
    """An exchange as it stands when its request was read."""

    known: Known = field(default_factory=_known)
    done: bool = False
    awaits_prompt: bool = False
    makes_response: bool = True
    reservation: None = None
    turned_away: list[ApiError] = field(default_factory=list)

    def receive_request(self, head: RequestHead, body: bytes) -> None: ...

    def turn_away(self, error: ApiError) -> None:
        self.turned_away.append(error)


@pytest.mark.parametrize(
    ("exchange", "asked"),
    [
        (_Received(), True),
        (_Received(_known(stored=False)), False),
        (_Received(done=True), False),
        (_Received(_known(replayed=True)), False),
        (_Received(_known(replayed=True), done=True), False),
    ],
)
async def test_room_is_asked_for_where_something_is_to_be_stored(
    store: MemoryResponseStore, exchange: _Received, asked: bool
) -> None:
    room: Any = _Room()
    runner = Runner(make_ports(store, None, timeouts=TimeoutSettings(), metrics=Metrics(), owner_room=room))
    await runner.receive(cast(Any, exchange), RequestHead("POST", "/v1/responses", (), "me"), b"{}")
    assert room.asked == (["me"] if asked else []) and exchange.turned_away == []


@pytest.mark.parametrize("failure", [OwnerFull(5), StoreError("locked", reason="locked")])
async def test_without_room_a_request_is_turned_away(store: MemoryResponseStore, failure: Exception) -> None:
    room: Any = _Room(failure)
    runner = Runner(make_ports(store, None, timeouts=TimeoutSettings(), metrics=Metrics(), owner_room=room))
    exchange = _Received()
    await runner.receive(cast(Any, exchange), RequestHead("POST", "/v1/responses", (), "me"), b"{}")
    (error,) = exchange.turned_away
    if isinstance(failure, ApiError):
        assert error is failure
    else:
        assert error.status == 503 and error.message.startswith("The stored data could not be read")


async def test_to_abandon_goes_on_when_whoever_did_so_is_gone(runner: Runner, store: MemoryResponseStore) -> None:
    exchange = await _begun(runner)
    begun, go = _held_up(store)
    request = asyncio.ensure_future(runner.abandon(exchange, CancelReason.CLIENT_GONE))
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    go.set()
    await runner.aclose()
    assert [record.status for record in store.records.values()] == ["failed"]
    assert exchange.done, "its end was performed, not only its save"
    await runner.abandon(exchange, CancelReason.CLIENT_GONE)


class _Keys:
    """Keys that nobody has used; what they were asked."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def made(self, once: OnceOnly) -> None:
        self.done.append("made")

    async def claim(self, once: OnceOnly, response_id: str) -> None:
        self.done.append("claim")

    def of(self, response_id: str) -> None: ...

    async def aclose(self) -> None: ...


@pytest.mark.parametrize(("path", "done"), [("", ["claim"]), ("/compact", []), ("/input_tokens", [])])
async def test_a_key_is_claimed_for_what_makes_a_response(
    store: MemoryResponseStore, path: str, done: list[str]
) -> None:
    keys: Any = _Keys()
    runner = Runner(make_ports(store, None, timeouts=TimeoutSettings(), metrics=Metrics(), keys=keys))
    head = RequestHead("POST", f"/v1/responses{path}", (("idempotency-key", "k"),), "me")
    await runner.receive(make_exchange(), head, b'{"model":"m","input":"hi"}')
    assert keys.done == done


class _Silent(_NoUpstream):
    """It never answers."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:  # type: ignore[override]
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError(request)
        yield


@pytest.mark.parametrize("steps", range(4))
async def test_a_process_that_stops_in_the_moment_in_which_a_client_leaves_releases_the_key(
    store: MemoryResponseStore, steps: int
) -> None:
    """Both cancel the task of the request, one shortly after the other."""
    keys, upstream = KeyStore(), _Silent()
    made: Any = HeldKeys(keys, Leases(60.0))
    runner = Runner(make_ports(store, cast(Any, upstream), timeouts=TimeoutSettings(), metrics=Metrics(), keys=made))
    exchange = make_exchange()
    head = RequestHead("POST", "/v1/responses", (("idempotency-key", "k"),), "me")
    await runner.receive(exchange, head, b'{"model":"m","input":"hi","stream":true}')
    assert exchange.goes_on and keys.held == ["k"]

    async def serve() -> None:
        try:
            async for _ in runner.drive(exchange):
                pass
        finally:
            await runner.abandon(exchange, CancelReason.SHUTTING_DOWN)

    request = asyncio.create_task(serve())
    await upstream.asked.wait()
    request.cancel()
    for _ in range(steps):
        await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert [record.status for record in store.records.values()] == ["failed"]
    assert keys.held == [] and exchange.done
    await runner.aclose()


async def test_the_same_runner_over_another_history_reads_and_writes_there(
    runner: Runner, store: MemoryResponseStore
) -> None:
    other = MemoryResponseStore()
    view = runner.over(other)
    exchange = await _begun(view)
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.CUT, "gone"))
    assert [action async for action in view.settle(exchange)]
    assert len(other.records) == 1 and store.records == {}
    (response_id,) = other.records
    body = json.dumps({"model": "m", "input": "hi", "previous_response_id": response_id}).encode()
    for used, status in ((view, None), (runner, 400)):
        exchange = make_exchange()
        exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
        heads = [action.status async for action in used.settle(exchange) if isinstance(action, SendHead)]
        assert heads == ([status] if status else [])
    another: Any = object()
    assert view.ports.upstream is runner.ports.upstream and runner.over(other, another).ports.upstream is another


class _Queue:
    """Background responses that are queued and followed, and never run."""

    def __init__(self) -> None:
        self.followers = self

    async def enqueue(self, *_: object) -> None: ...

    async def follow(self, owner: str, response_id: str) -> AsyncIterator[bytes]:
        yield b"an event"


async def test_who_follows_a_queued_response_holds_nothing_of_its_request(store: MemoryResponseStore) -> None:
    queue: Any = _Queue()
    runner = Runner(make_ports(store, None, timeouts=TimeoutSettings(), metrics=Metrics(), background=queue))
    budget = Budget(100, "limits.bytes_in_flight")
    exchange = make_exchange()
    exchange.hold = budget.hold("me")
    exchange.hold.add(50)
    body = b'{"model":"m","input":"hi","background":true,"stream":true}'
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "me"), body)
    held = [(action.data, budget.used) async for action in runner.settle(exchange) if isinstance(action, SendBody)]
    assert held[-1] == (b"an event", 0) and exchange.done
