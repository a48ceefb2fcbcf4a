"""Whatever leaves, breaks or falls silent: no hung request, no wrong success, no row in progress, no silent pass."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import RequestHead, ResponseRecord
from antiphon.errors import StoreError
from antiphon.translation.profiles import PROFILES
from tests.support.chat_server import WaitGone, answer, completion, event, never, text_stream
from tests.support.extproc_door import JSON, SSE, OpenDoor, open_door, request_body, sse_events
from tests.support.fake_envoy import DEADLINE, EnvoyStream
from tests.support.memory_store import MemoryResponseStore

_COMPLETION = json.dumps(completion()).encode()


async def _idle(opened: OpenDoor) -> None:
    """No request is in flight any more."""
    assert await opened.context.admission.drained(DEADLINE)


async def _in_flight(opened: OpenDoor, count: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while opened.context.admission.active != count:
            await asyncio.sleep(0)


def _statuses(opened: OpenDoor) -> list[str]:
    return [record.status for record in opened.store.records.values()]


async def _relayed(opened: OpenDoor, *parts: bytes, streamed: bool = True) -> EnvoyStream:
    """A request whose upstream has sent its head and these parts; the client has seen what comes of them."""
    stream = opened.stream()
    await stream.request(request_body(stream=streamed))
    await stream.forwarded()
    await stream.response_headers(200, SSE if streamed else JSON)
    for part in parts:
        await stream.response_body(part)
    if streamed and parts:
        await stream.until(lambda: bool(stream.client.parts))
    return stream


# The client leaves


async def test_the_client_leaves_during_its_upload(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request_headers()
        await stream.request_body(b"{")
        await _in_flight(opened, 1)
        assert opened.context.telemetry.metrics.render().count(b"antiphon_responses_in_flight 1.0\n") == 1
        await stream.leave()
        await _idle(opened)
        assert await opened.metric("antiphon_responses_in_flight") == 0
        assert opened.store.records == {}
        assert await opened.metric("responses_total", door="relay", outcome="cancelled") == 0


async def test_envoy_ends_its_side_during_the_upload(tmp_path: Path) -> None:
    # A handler that ended normally here would let half a request pass.
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request_headers()
        await stream.request_body(request_body()[:5])
        await stream.half_close()
        assert await stream.closed() is grpc.StatusCode.CANCELLED
        assert stream.answers == []
        await _idle(opened)


async def test_a_stream_without_any_message_is_aborted(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.half_close()
        assert await stream.closed() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("head", [True, False])
async def test_the_client_leaves_a_relay_before_the_first_event(tmp_path: Path, head: bool) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        await stream.forwarded()
        if head:
            await stream.response_headers(200, SSE)
            # The sidecar answers a head with the first event. A later request on the same connection shows that it read
            # the head.
            other = opened.stream()
            await other.request_headers()
            await _in_flight(opened, 2)
            await other.leave()
        await stream.leave()
        await _idle(opened)
        (record,) = opened.store.records.values()
        assert record.status == "failed"
        # Behind the head Envoy does not tell a client that leaves from an upstream that breaks off.
        message = json.loads(record.body)["error"]["message"]
        assert ("or the upstream broke off" in message) is head
        assert "client left" in message
        assert await opened.metric("responses_total", door="relay", outcome="cancelled") == 1


async def test_the_client_leaves_a_relay_in_the_middle(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = await _relayed(opened, *text_stream("useful")[:2])
        await stream.until(lambda: b"useful" in stream.client.body)
        await stream.leave()
        await _idle(opened)
        (record,) = opened.store.records.values()
        assert record.status == "failed"
        assert b"useful" in record.output_items[0].body


async def test_a_relay_whose_stream_just_ends_is_a_failed_response(tmp_path: Path) -> None:
    # The other shape of "gone": no cancellation, the messages end.
    async with open_door(tmp_path) as opened:
        stream = await _relayed(opened, *text_stream("useful")[:2])
        await stream.half_close()
        assert await stream.closed() is grpc.StatusCode.CANCELLED
        await _idle(opened)
        assert _statuses(opened) == ["failed"]


@pytest.mark.parametrize("head", [True, False])
async def test_the_client_leaves_a_drive_and_the_model_call_ends(tmp_path: Path, head: bool) -> None:
    async with open_door(tmp_path, mode="drive") as opened:
        opened.chat.script(answer(parts=[*text_stream("x")[:2], WaitGone()]) if head else never())
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        call = await opened.chat.received()
        if head:
            await stream.until(lambda: b"response.created" in stream.client.body)
        await stream.leave()
        async with asyncio.timeout(DEADLINE):
            await call.gone.wait()
        await _idle(opened)
        assert _statuses(opened) == ["failed"]
        assert await opened.metric("responses_total", door="drive", outcome="cancelled") == 1


@pytest.mark.parametrize("mode", ["relay", "drive"])
async def test_the_end_of_the_stream_right_after_the_last_part_is_no_failure(tmp_path: Path, mode: str) -> None:
    # Envoy cancels the call within milliseconds of the last part: FakeEnvoy does at once.
    async with open_door(tmp_path, mode=mode) as opened:
        for _ in range(20):
            stream = opened.stream()
            await stream.request(request_body(stream=True))
            if mode == "relay":
                await stream.forwarded()
                await stream.upstream(200, SSE, *text_stream("a"))
            await stream.complete()
        assert await opened.metric("responses_total", door=mode, outcome="completed") == 20
        assert _statuses(opened) == ["completed"] * 20


# The store breaks


class _BrokenStore(MemoryResponseStore):
    async def save(self, record: ResponseRecord) -> None:
        raise StoreError("disk full")


@pytest.mark.parametrize("mode", ["relay", "drive"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_response_that_cannot_be_stored_is_no_success(tmp_path: Path, mode: str, streamed: bool) -> None:
    async with open_door(tmp_path, mode=mode, store=_BrokenStore()) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=streamed))
        if mode == "relay":
            await stream.forwarded()
            await stream.upstream(200, SSE if streamed else JSON, *(text_stream("a") if streamed else [_COMPLETION]))
        client = await stream.complete()
        if streamed:
            assert sse_events(client.body)[-2:] == ["response.failed", "[DONE]"]
        else:
            assert client.status == 500
            assert "error" in json.loads(client.body)


class _SlowStore(MemoryResponseStore):
    def __init__(self) -> None:
        super().__init__()
        self.saving = asyncio.Event()
        self.go = asyncio.Event()

    async def save(self, record: ResponseRecord) -> None:
        self.saving.set()
        await self.go.wait()
        await super().save(record)


@pytest.mark.parametrize("mode", ["relay", "drive"])
async def test_nothing_terminal_is_sent_before_the_row_is_written(tmp_path: Path, mode: str) -> None:
    store = _SlowStore()
    async with open_door(tmp_path, mode=mode, store=store) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        if mode == "relay":
            await stream.forwarded()
            await stream.upstream(200, SSE, *text_stream("a"))
        await asyncio.wait_for(store.saving.wait(), DEADLINE)
        assert b"response.completed" not in stream.client.body
        assert stream.metadata.get("status") is None
        store.go.set()
        assert "response.completed" in sse_events((await stream.complete()).body)
        assert [record.status for record in store.records.values()] == ["completed"]


async def test_a_client_that_leaves_during_the_save_leaves_a_whole_row(tmp_path: Path) -> None:
    store = _SlowStore()
    async with open_door(tmp_path, store=store) as opened:
        stream = await _relayed(opened, b"".join(text_stream("a")[:2]))
        await stream.response_body(b"".join(text_stream("a")[2:]), end=True)
        await asyncio.wait_for(store.saving.wait(), DEADLINE)
        await stream.leave()
        await asyncio.sleep(0)
        store.go.set()
        await _idle(opened)
        await opened.context.runner.aclose()
        assert [record.status for record in store.records.values()] == ["completed"]


async def test_a_drain_waits_for_the_row_of_a_client_that_left(tmp_path: Path) -> None:
    store = _SlowStore()
    async with open_door(tmp_path, store=store) as opened:
        stream = await _relayed(opened, *text_stream("a")[:2])
        await stream.leave()
        await asyncio.wait_for(store.saving.wait(), DEADLINE)
        assert not await opened.door.drain(0.05)
        store.go.set()
        await _idle(opened)
        assert [record.status for record in store.records.values()] == ["failed"]


# Bugs


class _BrokenRequest(ResponseExchange):
    def receive_request(self, head: RequestHead, body: bytes) -> None:
        raise RuntimeError("a bug")


class _BrokenData(ResponseExchange):
    def receive_upstream_data(self, data: bytes) -> None:
        if b"BUG" in data:
            raise RuntimeError("a bug")
        super().receive_upstream_data(data)


@pytest.mark.parametrize("mode", ["relay", "drive"])
async def test_a_bug_before_any_answer_is_a_500(tmp_path: Path, mode: str) -> None:
    async with open_door(tmp_path, mode=mode, exchange_type=_BrokenRequest) as opened:
        stream = opened.stream()
        await stream.request(request_body())
        client = await stream.complete()
        assert (client.status, client.how) == (500, "immediate")
        assert json.loads(client.body)["error"]["type"] == "server_error"
        assert b"a bug" not in client.body
        await _idle(opened)


@pytest.mark.sources
async def test_a_bug_in_the_middle_cuts_that_stream_and_no_other(tmp_path: Path) -> None:
    async with open_door(tmp_path, exchange_type=_BrokenData) as opened:
        other = await _relayed(opened, *text_stream("a")[:1])
        stream = await _relayed(opened, *text_stream("a")[:1])
        await stream.response_body(event("BUG"))
        assert await stream.closed() is grpc.StatusCode.INTERNAL
        assert not stream.client.ended
        await other.response_body(b"".join(text_stream("a")[1:]), end=True)
        assert sse_events((await other.complete()).body)[-1] == "[DONE]"
        await _idle(opened)
        assert sorted(_statuses(opened)) == ["completed", "failed"]


async def test_an_impossible_order_cuts_the_stream(tmp_path: Path) -> None:
    # Two heads: no Envoy does that; what matters is that it never ends as a success.
    async with open_door(tmp_path) as opened:
        stream = await _relayed(opened, *text_stream("a")[:1])
        await stream.response_headers(200, SSE)
        assert await stream.closed() is grpc.StatusCode.INTERNAL
        await _idle(opened)
        assert _statuses(opened) == ["failed"]


@pytest.mark.parametrize("status", ["", "ok", "2e2", "-20", "20", "2000", "²00", "9" * 5_000])
@pytest.mark.parametrize("early", [False, True])
async def test_a_head_without_a_status_cuts_the_stream_and_is_one_line(
    tmp_path: Path, status: str, early: bool
) -> None:
    """As the upstream's head, and as Envoy's own answer while the request is still read."""
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        with capture_logs() as lines:
            if early:
                await stream.request_headers()
            else:
                await stream.request(request_body())
                await stream.forwarded()
            await stream.response_headers(status, JSON)  # type: ignore[arg-type]
            assert await stream.closed() is grpc.StatusCode.FAILED_PRECONDITION
            await _idle(opened)
        assert _statuses(opened) == ([] if early else ["failed"])
        (line,) = [line for line in lines if line["log_level"] == "error"]
        assert line["event"] == "extproc_misconfigured" and "exc_info" not in line


# The upstream is silent (in relay, where nobody but us would notice)


async def test_an_upstream_that_never_answers_is_a_504(tmp_path: Path) -> None:
    async with open_door(tmp_path, timeouts=TimeoutSettings(head=0.02)) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        client = await stream.complete()
        assert (client.status, client.how) == (504, "immediate")
        assert json.loads(client.body)["error"]["code"] == "upstream_timeout"
        assert await opened.metric("responses_total", door="relay", outcome="error") == 1


@pytest.mark.parametrize("begun", [True, False])
async def test_an_upstream_whose_json_stops_is_a_504(tmp_path: Path, begun: bool) -> None:
    async with open_door(tmp_path, timeouts=TimeoutSettings(idle=0.02)) as opened:
        stream = await _relayed(opened, *([_COMPLETION[:20]] if begun else []), streamed=False)
        client = await stream.complete()
        assert client.status in (502, 504)
        assert client.how == ("relay" if begun else "immediate")
        assert client.header("content-length") == str(len(client.body))


async def test_an_event_stream_that_stops_becomes_a_failed_response(tmp_path: Path) -> None:
    async with open_door(tmp_path, timeouts=TimeoutSettings(idle=0.1), keepalive=0.01) as opened:
        stream = await _relayed(opened, *text_stream("some")[:2])
        client = await stream.complete()
        # Our own comments do not keep a dead upstream alive.
        assert b": keep-alive" in client.body
        assert sse_events(client.body)[-2:] == ["response.failed", "[DONE]"]
        assert stream.metadata["status"] == "failed"
        assert _statuses(opened) == ["failed"]


async def test_somebody_elses_stream_that_stops_is_cut(tmp_path: Path) -> None:
    """Its bytes are the upstream's: nothing of ours is put behind them, and they must not look whole."""
    generic = PROFILES["generic"]
    routes = ModelRoutes(ModelRoute(generic), (ModelRule("*", ModelRoute(generic, mode="native")),))
    async with open_door(tmp_path, timeouts=TimeoutSettings(idle=0.1), exchange={"routes": routes}) as opened:
        with capture_logs() as lines:
            stream = await _relayed(opened, b"data: a\n\n")
            async with asyncio.timeout(DEADLINE):
                while stream.code is None:
                    await asyncio.sleep(0)
            assert stream.client.body == b"data: a\n\n" and not stream.client.ended
            await opened.context.admission.drained(DEADLINE)
        assert await opened.metric("responses_total", door="relay", outcome="cut") == 1
    (line,) = [line for line in lines if line["event"] == "response"]
    assert (line["outcome"], line["fault"], line["operation"]) == ("cut", "upstream", "pass_on")


@pytest.mark.parametrize("large", [True, False])
async def test_silence_is_only_the_upstreams_where_it_cannot_be_an_unread_stream(tmp_path: Path, large: bool) -> None:
    """Envoy holds the upstream back when its client does not read, which looks the same from here."""
    begun = [*text_stream("some")[:2], *([event("x" * 200_000)] if large else [])]
    async with open_door(tmp_path, timeouts=TimeoutSettings(idle=0.1)) as opened:
        with capture_logs() as lines:
            stream = await _relayed(opened, *begun)
            client = await stream.complete()
            assert sse_events(client.body)[-2:] == ["response.failed", "[DONE]"]
            await opened.context.admission.drained(DEADLINE)
        (line,) = [line for line in lines if line["event"] == "response"]
    assert (line["log_level"], line["code"]) == ("warning", "upstream_timeout")
    assert line["fault"] == ("unknown" if large else "upstream")
    assert ("the client does not read" in line["cause"]) == large and "timeouts.idle" in line["cause"]
    assert (line["operation"], line["upstream"], line["status"]) == ("read_answer", "default", 200)


async def test_an_upstream_that_does_not_end_after_its_last_event_is_not_waited_for(tmp_path: Path) -> None:
    async with open_door(tmp_path, end_seconds=0.02) as opened:
        stream = await _relayed(opened, b"".join(text_stream("a")))
        client = await stream.complete()
        assert sse_events(client.body)[-2:] == ["response.completed", "[DONE]"]
        assert _statuses(opened) == ["completed"]


async def test_the_upstream_speaks_while_the_time_is_up(tmp_path: Path) -> None:
    # What the timer does and what a message leads to never overlap, whichever comes first.
    async with open_door(tmp_path, timeouts=TimeoutSettings(idle=0.01), keepalive=0.002) as opened:
        for _ in range(30):
            stream = await _relayed(opened, *text_stream("a")[:2])
            for number in range(20):
                await stream.response_body(event(str(number)))
            await stream.response_body(b"".join(text_stream("z")[2:]), end=True)
            client = await stream.complete()
            assert sse_events(client.body)[-2] in ("response.completed", "response.failed")
            assert client.body.count(b"[DONE]") == 1


# The failure of an act in silence


class _BrokenEnd(ResponseExchange):
    def receive_upstream_end(self, error: object = None) -> None:
        raise RuntimeError("a bug")


@pytest.mark.sources
async def test_a_bug_in_silence_cuts_the_stream(tmp_path: Path) -> None:
    async with open_door(tmp_path, timeouts=TimeoutSettings(head=0.02), exchange_type=_BrokenEnd) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        assert await stream.closed() is grpc.StatusCode.INTERNAL
        await _idle(opened)
        assert _statuses(opened) == ["failed"]
