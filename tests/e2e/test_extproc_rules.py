"""The rules of the ext_proc door that only a real Envoy can confirm."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.config.limits import TimeoutSettings
from tests.support.chat_server import Reset, Wait, WaitGone, answer, json_answer, never, text_stream
from tests.support.extproc_door import DoorSetup, request_body, sse_events
from tests.support.real_envoy import real_envoy
from tests.support.waiting import until

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("mode", ["relay", "drive"])
async def test_request_trailers(tmp_path: Path, mode: str) -> None:
    async with real_envoy(tmp_path, mode=mode) as envoy:
        fine, body = await envoy.post_with_trailers(request_body(stream=True))
        assert fine
        assert sse_events(body)[-2:] == ["response.completed", "[DONE]"]
        fine, body = await envoy.post_with_trailers(request_body())
        assert fine
        assert json.loads(body)["status"] == "completed"
        fine, body = await envoy.post_with_trailers(b"{}")
        assert not fine
        assert json.loads(body)["error"]["param"] == "model"
        # Envoy itself called nobody: it would have sent each body twice.
        assert len(envoy.opened.chat.requests) == 2 and not envoy.chat.requests


async def test_the_upstreams_connection_is_kept_when_its_end_comes_late(tmp_path: Path) -> None:
    async with real_envoy(tmp_path) as envoy:
        for _ in range(4):
            gate = asyncio.Event()
            envoy.chat.script(answer(parts=[*text_stream("a"), Wait(gate)]))
            request = asyncio.create_task(envoy.post(request_body(stream=True)))
            await until(lambda: envoy.opened.store.records)
            envoy.opened.store.records.clear()
            gate.set()
            assert sse_events((await request).body)[-1] == "[DONE]"
        assert envoy.chat.connections == 1


async def test_a_silent_upstream(tmp_path: Path) -> None:
    timeouts = TimeoutSettings(head=0.2, idle=0.2)
    async with real_envoy(tmp_path, timeouts=timeouts, end_seconds=0.05) as envoy:
        envoy.chat.script(never())
        answered = await envoy.post(request_body(stream=True))
        assert (answered.status, answered.headers["content-type"]) == (504, "application/json")
        call = await envoy.chat.received()
        await asyncio.wait_for(call.gone.wait(), 5)
        envoy.chat.script(answer(parts=[*text_stream("a")[:2], WaitGone()]))
        answered = await envoy.post(request_body(stream=True))
        assert not answered.cut
        assert sse_events(answered.body)[-2:] == ["response.failed", "[DONE]"]
        call = await envoy.chat.received()
        await asyncio.wait_for(call.gone.wait(), 5)
        envoy.chat.script(answer(parts=[*text_stream("a"), WaitGone()]))
        answered = await envoy.post(request_body(stream=True))
        assert not answered.cut
        assert sse_events(answered.body)[-2:] == ["response.completed", "[DONE]"]


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_an_answer_without_a_body(tmp_path: Path, framing: str) -> None:
    async with real_envoy(tmp_path) as envoy:
        envoy.chat.script(
            answer(parts=[], framing=framing),
            answer(200, [("content-type", "application/json")], framing=framing),
            answer(500, [("content-type", "text/html")], framing=framing),
        )
        answered = await envoy.post(request_body(stream=True))
        assert sse_events(answered.body)[-2:] == ["response.failed", "[DONE]"]
        assert (await envoy.post(request_body())).status == 502
        answered = await envoy.post(request_body())
        assert answered.status == 500
        assert json.loads(answered.body)["error"]["type"] == "server_error"


async def test_an_upstream_that_breaks_off_cuts_the_client_and_leaves_a_failed_row(tmp_path: Path) -> None:
    async with real_envoy(tmp_path) as envoy:
        gate = asyncio.Event()
        envoy.chat.script(answer(parts=[*text_stream("a")[:2], Wait(gate), Reset()]))
        reader, writer = await asyncio.open_connection("127.0.0.1", envoy.port)
        body = request_body(stream=True)
        writer.write(b"POST /v1/responses HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        async with asyncio.timeout(60):
            seen = await reader.readuntil(b"response.output_text.delta")
            gate.set()
            seen += await reader.read()
        writer.close()
        await writer.wait_closed()
        assert not seen.endswith(b"0\r\n\r\n")
        assert b"response.completed" not in seen
        await until(lambda: envoy.opened.store.records)
        (record,) = envoy.opened.store.records.values()
        assert record.status == "failed"
        assert b"or the upstream broke off" in record.body


async def test_early_refusals(tmp_path: Path) -> None:
    setup = DoorSetup(request_body_bytes=100_000, request_seconds=0.3)
    async with real_envoy(tmp_path, setup=setup) as envoy:
        answered = await envoy.post(b"x" * 200_000)
        assert answered.status == 413
        assert json.loads(answered.body)["error"]["code"] == "request_too_large"
        reader, writer = await asyncio.open_connection("127.0.0.1", envoy.port)
        writer.write(b"POST /v1/responses HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n{")
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        await writer.wait_closed()
        assert envoy.chat.requests == []


async def test_a_compressed_and_decorated_answer(tmp_path: Path) -> None:
    async with real_envoy(tmp_path) as envoy:
        headers = [("server", "uvicorn"), ("set-cookie", "a=1"), ("x-ratelimit-limit-tokens", "9")]
        envoy.chat.script(json_answer({"error": {"message": "no"}}, 429, [*headers, ("retry-after", "3")]))
        answered = await envoy.post(request_body())
        assert answered.status == 429
        assert answered.headers["retry-after"] == "3"
        assert answered.headers["x-ratelimit-limit-tokens"] == "9"
        assert "set-cookie" not in answered.headers
        assert answered.headers.get("server") != "uvicorn"
        call = await envoy.chat.received()
        assert call.header("accept-encoding") is None
        assert call.header("x-antiphon-backend") is None


async def test_wrong_modes_fail_closed_and_say_why(tmp_path: Path) -> None:
    def buffered(config: dict[str, Any]) -> None:
        text = json.dumps(config).replace("FULL_DUPLEX_STREAMED", "BUFFERED")
        config.clear()
        config.update(json.loads(text))

    with capture_logs() as logs:
        async with real_envoy(tmp_path, buffered, serves=False) as envoy:
            answered = await envoy.post(request_body())
            assert answered.status == 503
            assert json.loads(answered.body)["error"]["code"] == "adapter_unavailable"
            assert envoy.chat.requests == []
    assert (
        "request_body_mode is BUFFERED" in next(log for log in logs if log["event"] == "extproc_misconfigured")["error"]
    )
