"""Drive: the model is called from here, the client is answered by streamed immediate responses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from antiphon.translation.events.encode import KEEPALIVE
from tests.support.chat_server import Reset, Wait, WaitGone, answer, event, json_answer, text_stream
from tests.support.extproc_door import open_door, request_body, sse_events


async def test_a_json_answer(tmp_path: Path) -> None:
    async with open_door(tmp_path, mode="drive") as opened:
        stream = opened.stream()
        await stream.request(request_body(), headers=(("x-request-id", "req-7"), ("cookie", "a=1")))
        client = await stream.complete()
        assert (client.status, client.how) == (200, "local")
        response = json.loads(client.body)
        assert response["output"][0]["content"][0]["text"] == "Hello"
        assert client.header("content-length") == str(len(client.body))
        assert client.header("x-request-id") == "req-7"
        assert stream.metadata == {
            "model": "demo-model",
            "status": "completed",
            "response_id": response["id"],
            "input_tokens": 3,
            "output_tokens": 2,
            "total_tokens": 5,
        }
        assert list(opened.store.records) == [response["id"]]
        assert await opened.metric("responses_total", door="drive", outcome="completed") == 1
        call = await opened.chat.received()
        assert call.path == "/v1/chat/completions"
        assert call.header("x-request-id") == "req-7"
        assert call.header("cookie") is None


async def test_an_event_stream_ends_in_the_part_of_its_terminal_event(tmp_path: Path) -> None:
    async with open_door(tmp_path, mode="drive") as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        client = await stream.complete()
        assert client.status == 200
        assert client.header("content-type") == "text/event-stream; charset=utf-8"
        events = sse_events(client.body)
        assert (events[0], events[-2:]) == ("response.created", ["response.completed", "[DONE]"])
        assert sse_events(client.parts[-1])[-2:] == ["response.completed", "[DONE]"]
        # One message for the head, one for each part: none of them empty.
        assert len(stream.answers) == 1 + len(client.parts)


async def test_events_flow_while_the_model_works(tmp_path: Path) -> None:
    async with open_door(tmp_path, mode="drive") as opened:
        first, second = asyncio.Event(), asyncio.Event()
        parts = text_stream("x")
        opened.chat.script(answer(parts=[Wait(first), parts[0], event("one"), Wait(second), *parts[1:]]))
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        await stream.until(lambda: "response.created" in sse_events(stream.client.body))
        assert b"delta" not in stream.client.body
        first.set()
        await stream.until(lambda: b'"one"' in stream.client.body)
        second.set()
        await stream.complete()


async def test_a_late_head_opens_the_stream(tmp_path: Path) -> None:
    async with open_door(tmp_path, mode="drive", head_wait=0.01, keepalive=0.01) as opened:
        gate = asyncio.Event()

        opened.chat.script(answer(framing="none", parts=[Wait(gate), Reset()]))
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        await stream.until(lambda: KEEPALIVE in stream.client.body)
        assert stream.client.status == 200
        gate.set()
        client = await stream.complete()
        assert sse_events(client.body)[-2:] == ["response.failed", "[DONE]"]


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_upstreams_error_keeps_its_status(tmp_path: Path, streamed: bool) -> None:
    async with open_door(tmp_path, mode="drive") as opened:
        opened.chat.script(json_answer({"error": {"message": "slow down"}}, 429, [("retry-after", "7")]))
        stream = opened.stream()
        await stream.request(request_body(stream=streamed))
        client = await stream.complete()
        assert client.status == 429
        assert client.header("retry-after") == "7"
        assert client.header("content-length") == str(len(client.body))
        assert stream.metadata["status"] == "error"
        assert await opened.metric("responses_total", door="drive", outcome="error") == 1


async def test_an_upstream_that_breaks_off_becomes_a_failed_response(tmp_path: Path) -> None:
    async with open_door(tmp_path, mode="drive") as opened:
        opened.chat.script(answer(parts=[*text_stream("some")[:2], Reset()]))
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        client = await stream.complete()
        assert sse_events(client.body)[-2:] == ["response.failed", "[DONE]"]
        assert [record.status for record in opened.store.records.values()] == ["failed"]


async def test_a_large_json_answer(tmp_path: Path) -> None:
    async with open_door(tmp_path, mode="drive") as opened:
        text = "z" * (2 << 20)
        opened.chat.script(
            json_answer({"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]})
        )
        stream = opened.stream()
        await stream.request(request_body())
        client = await stream.complete()
        assert json.loads(client.body)["output"][0]["content"][0]["text"] == text
        assert max(map(len, client.parts)) <= 256 * 1024


@pytest.mark.parametrize("mode", ["auto", "relay"])
async def test_only_drive_calls_the_model_from_here(tmp_path: Path, mode: str) -> None:
    async with open_door(tmp_path, mode=mode) as opened:
        stream = opened.stream()
        await stream.request(request_body())
        await stream.forwarded()
        assert opened.chat.requests == []


async def test_a_stream_has_a_size_with_its_end(tmp_path: Path) -> None:
    # Envoy takes it all, whether its client reads or not.
    limit = 300_000
    async with open_door(tmp_path, mode="drive", drive_stream_bytes=limit) as opened:
        opened.chat.script(answer(parts=[*text_stream("x")[:1], *[event("x" * 1000)] * 5_000, WaitGone()]))
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        client = await stream.complete()
        assert sse_events(client.body)[-2:] == ["response.failed", "[DONE]"]
        assert b'"stream_too_large"' in client.body and b"limits.drive_stream_bytes" in client.body
        # One piece of the model's answer may be too much: its text is written once, and four times at the end.
        assert len(client.body) <= limit + 5 * 36 * 1024
        (record,) = opened.store.records.values()
        assert record.status == "failed"
