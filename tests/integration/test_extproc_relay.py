"""Relay: Envoy makes the model call, both directions are rewritten, and the order is one that Envoy accepts."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from antiphon.config.limits import TimeoutSettings
from antiphon.translation.events.encode import KEEPALIVE
from tests.support.chat_server import DONE_EVENT, answer, completion, event, text_stream
from tests.support.exchanges import limits
from tests.support.extproc_door import JSON, SSE, OpenDoor, open_door, request_body, sse_events
from tests.support.fake_envoy import DEADLINE, EnvoyStream
from tests.support.http_door import open_http_door, post_bytes

_COMPLETION = json.dumps(completion("Hello")).encode()


async def _streaming(opened: OpenDoor) -> EnvoyStream:
    """A streamed request whose upstream has answered its head."""
    stream = opened.stream()
    await stream.request(request_body(stream=True))
    await stream.forwarded()
    await stream.response_headers(200, SSE)
    return stream


async def _handled(opened: OpenDoor, stream: EnvoyStream) -> None:
    """The sidecar has handled what it was sent: it has answered another stream since."""
    other = opened.stream()
    await other.request(b"{}")
    await other.complete()
    stream.check()


# The request


async def test_the_request_is_rewritten(tmp_path: Path) -> None:
    async with open_door(tmp_path, exchange={"upstream_headers": frozenset({"x-team"})}) as opened:
        stream = opened.stream()
        headers = (
            ("content-type", "application/json; charset=utf-8"),
            ("content-length", "38"),
            ("accept", "*/*"),
            ("accept-encoding", "gzip, br"),
            ("transfer-encoding", "chunked"),
            ("authorization", "Bearer key"),
            ("cookie", "session=1"),
            ("x-antiphon-backend", "forged"),
            ("x-antiphon-owner", "forged"),
            ("x-stainless-os", "Linux"),
            ("x-team", "one"),
            ("traceparent", "00-1-2-01"),
        )
        await stream.request(request_body(), headers=headers)
        forwarded = await stream.forwarded()
        assert sorted(forwarded.headers) == [
            (":authority", "antiphon.test"),
            (":method", "POST"),
            (":path", "/v1/chat/completions"),
            (":scheme", "http"),
            ("accept", "application/json"),
            ("authorization", "Bearer key"),
            ("content-length", str(len(forwarded.body))),
            ("content-type", "application/json"),
            ("traceparent", "00-1-2-01"),
            ("x-antiphon-backend", "default"),
            ("x-forwarded-proto", "http"),
            ("x-request-id", "envoy-made-id"),
            ("x-team", "one"),
        ]
        assert json.loads(forwarded.body)["messages"] == [{"role": "user", "content": "Hi"}]
        assert stream.metadata == {"model": "demo-model"}


@pytest.mark.parametrize("driven", [False, True])
@pytest.mark.parametrize("given", [("a b",), ("x" * 129,), ("one", "two")])
async def test_an_id_that_is_none_is_replaced_on_the_way_to_the_upstream(
    tmp_path: Path, driven: bool, given: tuple[str, ...]
) -> None:
    with capture_logs() as lines:
        async with open_door(tmp_path, mode="drive" if driven else "auto") as opened:
            stream = opened.stream()
            await stream.request(request_body(), headers=tuple(("x-request-id", one) for one in given))
            if driven:
                client = await stream.complete()
                (told,) = opened.chat.requests[-1].header_values("x-request-id")
            else:
                told = dict((await stream.forwarded()).headers)["x-request-id"]
                await stream.upstream(200, JSON, _COMPLETION)
                client = await stream.complete()
    (line,) = [line for line in lines if line["event"] == "response"]
    assert told.startswith("req_") and client.header("x-request-id") == line["request_id"] == told


async def test_a_header_that_came_twice_is_sent_as_a_list(tmp_path: Path) -> None:
    async with open_door(tmp_path, exchange={"upstream_headers": frozenset({"x-tag"})}) as opened:
        stream = opened.stream()
        await stream.request(request_body(), headers=(("x-tag", "a"), ("x-tag", "b")))
        forwarded = await stream.forwarded()
        assert [value for name, value in forwarded.headers if name == "x-tag"] == ["a, b"]


# JSON


@pytest.mark.parametrize("pieces", [1, 3, len(_COMPLETION)])
async def test_a_json_answer(tmp_path: Path, pieces: int) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body(), headers=(("x-request-id", "req-7"),))
        await stream.forwarded()
        size = -(-len(_COMPLETION) // pieces)
        parts = [_COMPLETION[at : at + size] for at in range(0, len(_COMPLETION), size)]
        await stream.upstream(200, (*JSON, ("content-length", str(len(_COMPLETION)))), *parts)
        client = await stream.complete()
        assert (client.status, client.how) == (200, "relay")
        response = json.loads(client.body)
        assert response["status"] == "completed"
        assert response["output"][0]["content"][0]["text"] == "Hello"
        assert client.header("content-length") == str(len(client.body))
        assert client.header("x-request-id") == "req-7"
        assert stream.answers[2:] == ["response_headers", "response_body"]
        assert stream.metadata == {
            "model": "demo-model",
            "status": "completed",
            "response_id": response["id"],
            "input_tokens": 3,
            "output_tokens": 2,
            "total_tokens": 5,
        }
        assert list(opened.store.records) == [response["id"]]
        assert await opened.metric("responses_total", door="relay", outcome="completed") == 1


@pytest.mark.parametrize("driven", [False, True])
async def test_a_response_has_one_line_that_says_how_long_it_took(tmp_path: Path, driven: bool) -> None:
    began = time.perf_counter()
    with capture_logs() as lines:
        async with open_door(tmp_path, mode="drive" if driven else "auto") as opened:
            stream = opened.stream()
            await stream.request(request_body(), headers=(("x-request-id", "req-7"),))
            if not driven:
                await stream.forwarded()
                await stream.upstream(200, JSON, _COMPLETION)
            response = json.loads((await stream.complete()).body)
            door = "drive" if driven else "relay"
            assert await opened.metric("responses_total", door=door, outcome="completed") == 1
            took = time.perf_counter() - began
            assert 0 <= await opened.metric("response_duration_seconds_sum", door=door) <= took
            assert await opened.metric("antiphon_responses_in_flight") == 0
    (line,) = [one for one in lines if one["event"] == "response"]
    known = {name: line[name] for name in ("request_id", "response_id", "door", "model", "outcome")}
    assert known == {
        "request_id": "req-7",
        "response_id": response["id"],
        "door": door,
        "model": "demo-model",
        "outcome": "completed",
    }
    assert 0 <= line["seconds"] <= took


async def test_the_head_of_a_json_answer_waits_for_its_end(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body())
        await stream.forwarded()
        await stream.response_headers(200, JSON)
        await stream.response_body(_COMPLETION)
        await _handled(opened, stream)
        assert stream.client.status is None
        await stream.response_body(b"", end=True)
        assert (await stream.complete()).status == 200


# Event streams


async def test_an_event_stream(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = await _streaming(opened)
        for part in text_stream("Hel", "lo"):
            await stream.response_body(part)
        await stream.response_body(b"", end=True)
        client = await stream.complete()
        assert client.status == 200
        assert client.header("content-type") == "text/event-stream; charset=utf-8"
        assert client.header("content-length") is None
        events = sse_events(client.body)
        assert (events[0], events[-2:]) == ("response.created", ["response.completed", "[DONE]"])
        assert stream.metadata["output_tokens"] == 2
        assert len(opened.store.records) == 1


async def test_an_event_stream_that_ends_with_its_last_data_ends_in_one_part(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = await _streaming(opened)
        await stream.response_body(b"".join(text_stream("a")), end=True)
        client = await stream.complete()
        assert stream.answers[2:] == ["response_headers", "response_body"]
        assert sse_events(client.body)[-1] == "[DONE]"


async def test_nothing_goes_out_before_the_upstreams_first_body_part(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = await _streaming(opened)
        await _handled(opened, stream)
        assert stream.client.status is None
        await stream.response_body(text_stream("a")[0])
        await stream.until(lambda: bool(stream.client.parts))
        assert stream.client.status == 200
        assert sse_events(stream.client.body)[0] == "response.created"


async def test_each_upstream_part_reaches_the_client_at_once(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = await _streaming(opened)
        await stream.response_body(text_stream("a")[0])
        for word in ("one", "two", "three"):
            await stream.response_body(event(word))
            await stream.until(lambda word=word: word.encode() in stream.client.body)  # type: ignore[misc]


async def test_all_events_of_one_upstream_part_go_out_as_one_part(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = await _streaming(opened)
        await stream.response_body(text_stream("a")[0])
        await stream.until(lambda: bool(stream.client.parts))
        before = len(stream.client.parts)
        await stream.response_body(b"".join(event(str(number)) for number in range(20)) + event("last"))
        await stream.until(lambda: b'"last"' in stream.client.body)
        assert len(stream.client.parts) == before + 1


async def test_what_is_complete_is_sent_at_once_but_ended_with_the_upstream(tmp_path: Path) -> None:
    # Ending first would make Envoy throw the upstream's connection away.
    async with open_door(tmp_path) as opened:
        stream = await _streaming(opened)
        await stream.response_body(b"".join(text_stream("a")))
        await stream.until(lambda: b"[DONE]" in stream.client.body)
        assert not stream.client.ended
        assert stream.metadata["status"] == "completed"
        await stream.response_body(b"", end=True)
        await stream.complete()


async def test_after_the_sentinel_nothing_holds_the_clients_stream_open(tmp_path: Path) -> None:
    # Neither silence nor comments without an end: what may still come is the end, and that soon.
    async with open_door(tmp_path, end_seconds=0.05) as opened:
        quiet, noisy = await _streaming(opened), await _streaming(opened)
        for stream in (quiet, noisy):
            await stream.response_body(b"".join(text_stream("a")))
            await stream.until(lambda stream=stream: b"[DONE]" in stream.client.body)  # type: ignore[misc]
        async with asyncio.timeout(DEADLINE):
            while not noisy.client.ended:
                await noisy.response_body(b": still here\n\n")
                await asyncio.sleep(0.005)
        for stream in (quiet, noisy):
            assert (await stream.complete()).body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_error_whose_body_never_ends_reaches_the_client(tmp_path: Path, streamed: bool) -> None:
    async with open_door(tmp_path, exchange={"limits": limits(upstream_error_bytes=2000)}) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=streamed))
        await stream.forwarded()
        await stream.response_headers(500, (("content-type", "text/plain"),))
        for _ in range(3):
            await stream.response_body(b"y" * 1000)
        client = await stream.complete()
        assert (client.status, json.loads(client.body)["error"]["type"]) == (500, "server_error")


@pytest.mark.parametrize("part", [b"", b'{"error":'])
async def test_an_error_whose_body_does_not_come_reaches_the_client(tmp_path: Path, part: bytes) -> None:
    times = TimeoutSettings(error_body=0.05)
    async with open_door(tmp_path, exchange={"times": times}) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        await stream.forwarded()
        await stream.response_headers(429, JSON)
        if part:
            await stream.response_body(part)
        client = await stream.complete()
        assert (client.status, json.loads(client.body)["error"]["code"]) == (429, "rate_limit_exceeded")


@pytest.mark.parametrize("times", [TimeoutSettings(no_output=0.1), TimeoutSettings(response=0.1)])
async def test_comments_do_not_keep_a_stream_alive(tmp_path: Path, times: TimeoutSettings) -> None:
    async with open_door(tmp_path, exchange={"times": times}) as opened:
        stream = await _streaming(opened)
        await stream.response_body(text_stream("a")[0])
        async with asyncio.timeout(DEADLINE):
            while not stream.client.ended:
                await stream.response_body(b": ping\n\n")
                await asyncio.sleep(0.005)
        client = await stream.complete()
        assert sse_events(client.body)[-2:] == ["response.failed", "[DONE]"]
        code = "upstream_no_output" if times.no_output == 0.1 else "response_timeout"
        assert code.encode() in client.body
        assert [record.status for record in opened.store.records.values()] == ["failed"]


async def test_what_follows_the_sentinel_means_nothing(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = await _streaming(opened)
        await stream.response_body(b"".join(text_stream("a")))
        await stream.until(lambda: b"[DONE]" in stream.client.body)
        await stream.response_body(event("more"))
        await stream.response_body(DONE_EVENT, end=True)
        client = await stream.complete()
        assert client.body.count(b"[DONE]") == 1
        assert b"more" not in client.body


async def test_a_stream_request_that_gets_json_becomes_a_stream(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        await stream.forwarded()
        await stream.upstream(200, (*JSON, ("content-length", str(len(_COMPLETION)))), _COMPLETION)
        client = await stream.complete()
        assert client.header("content-length") is None
        assert sse_events(client.body)[-2:] == ["response.completed", "[DONE]"]


@pytest.mark.parametrize("end", [True, False])
async def test_the_first_body_part_may_be_empty(tmp_path: Path, end: bool) -> None:
    async with open_door(tmp_path) as opened:
        stream = await _streaming(opened)
        await stream.response_body(b"", end=end)
        if not end:
            await stream.response_body(b"".join(text_stream("a")), end=True)
        client = await stream.complete()
        assert client.status == 200
        assert sse_events(client.body)[-2] == ("response.failed" if end else "response.completed")


# Trailers and bodiless answers


async def test_response_trailers_of_a_stream(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = await _streaming(opened)
        await stream.response_body(b"".join(text_stream("a", done=False)))
        await stream.response_trailers()
        client = await stream.complete()
        assert stream.answers[-1] == "response_trailers"
        assert sse_events(client.body)[-1] == "[DONE]"
        assert stream.metadata["status"] == "completed"


async def test_response_trailers_after_the_sentinel(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = await _streaming(opened)
        await stream.response_body(b"".join(text_stream("a")))
        await stream.until(lambda: b"[DONE]" in stream.client.body)
        await stream.response_trailers()
        await stream.complete()
        assert stream.answers[-2:] == ["response_body", "response_trailers"]


async def test_response_trailers_of_json(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body())
        await stream.forwarded()
        await stream.upstream(200, JSON, _COMPLETION, trailers=(("x-cost", "1"),))
        client = await stream.complete()
        assert stream.answers[2:] == ["response_headers", "response_body", "response_trailers"]
        assert json.loads(client.body)["status"] == "completed"


@pytest.mark.parametrize("streamed", [True, False])
async def test_trailers_without_a_body(tmp_path: Path, streamed: bool) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=streamed))
        await stream.forwarded()
        await stream.upstream(200, JSON, trailers=(("grpc-status", "12"),))
        client = await stream.complete()
        assert (client.status, client.how) == (502, "immediate")
        assert "error" in json.loads(client.body)


@pytest.mark.parametrize(("status", "seen"), [(204, 502), (503, 503), (401, 401), (302, 502)])
async def test_an_answer_without_a_body(tmp_path: Path, status: int, seen: int) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=True))
        await stream.forwarded()
        await stream.upstream(status, (("content-type", "text/plain"), ("content-length", "0")))
        client = await stream.complete()
        assert client.status == seen
        assert client.header("content-type") == "application/json"
        assert client.header("content-length") == str(len(client.body))
        assert stream.answers[2:] == ["response_headers"]
        assert stream.metadata["status"] == "error"


# Errors of the upstream, and of Envoy


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("status", "seen", "kind", "body"),
    [
        (429, 429, "application/json", b'{"error":{"message":"slow down","type":"x","code":"rate"}}'),
        (500, 500, "text/html", b"<html>oops</html>"),
        (404, 404, "application/json", b'{"error":{"message":"There is no model m."}}'),
        (404, 502, "application/json", b"{"),  # the path: upstream.url is wrong
        (503, 502, "text/plain", b"upstream connect error or disconnect/reset before headers"),  # Envoy's own
        (504, 504, "text/plain", b"upstream request timeout"),
        (400, 400, "application/json", b""),
    ],
)
async def test_an_upstreams_error_keeps_its_status(
    tmp_path: Path, status: int, seen: int, kind: str, body: bytes, streamed: bool
) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=streamed))
        await stream.forwarded()
        await stream.upstream(status, (("content-type", kind), ("content-length", str(len(body)))), body)
        client = await stream.complete()
        assert client.status == seen
        assert client.header("content-type") == "application/json"
        assert client.header("content-length") == str(len(client.body))
        assert set(json.loads(client.body)["error"]) - {"request_id"} == {"message", "type", "param", "code"}
        assert await opened.metric("responses_total", door="relay", outcome="error") == 1


async def test_of_the_upstreams_headers_only_the_accounts_limits_pass(tmp_path: Path) -> None:
    headers = (
        *JSON,
        ("content-length", "1"),
        ("content-encoding", "identity"),
        ("transfer-encoding", "chunked"),
        ("server", "uvicorn"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-request-id", "theirs"),
        ("openai-organization", "acme"),
        ("x-ratelimit-remaining-tokens", "7"),
        # Antiphon forwards no value of this form, so Envoy must remove the header.
        ("x-ratelimit-note", "é"),
    )
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body())
        await stream.forwarded()
        await stream.upstream(200, headers, _COMPLETION)
        client = await stream.complete()
        assert sorted(client.headers) == [
            ("content-length", str(len(client.body))),
            ("content-type", "application/json"),
            ("x-ratelimit-remaining-tokens", "7"),
            ("x-request-id", "envoy-made-id"),
        ]


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_compressed_answer_is_read(tmp_path: Path, streamed: bool) -> None:
    body = gzip.compress(b"".join(text_stream("a")) if streamed else _COMPLETION)
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body(stream=streamed))
        await stream.forwarded()
        headers = (*(SSE if streamed else JSON), ("content-encoding", "gzip"))
        await stream.upstream(200, headers, *[body[at : at + 11] for at in range(0, len(body), 11)])
        client = await stream.complete()
        assert client.header("content-encoding") is None
        assert b'"status":"completed"' in client.body


async def test_a_compressed_answer_that_stops_in_the_middle_is_no_success(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body())
        await stream.forwarded()
        await stream.upstream(200, (*JSON, ("content-encoding", "gzip")), gzip.compress(_COMPLETION)[:-6])
        client = await stream.complete()
        assert client.status == 502 and json.loads(client.body)["error"]["type"] == "server_error"


async def test_a_large_request_is_forwarded_in_parts_and_ends_once(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        text = "x" * 900_000
        await stream.request(json.dumps({"model": "demo-model", "input": text}).encode())
        forwarded = await stream.forwarded()
        assert json.loads(forwarded.body)["messages"][0]["content"] == text and forwarded.parts > 1
        await stream.upstream(200, JSON, _COMPLETION)
        assert (await stream.complete()).status == 200


async def test_an_answer_in_an_unknown_coding_is_a_502(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = opened.stream()
        await stream.request(request_body())
        await stream.forwarded()
        await stream.upstream(200, (*JSON, ("content-encoding", "br")), b"\x0b\x02\x80")
        assert (await stream.complete()).status == 502


async def test_codings_are_undone_as_in_the_other_doors(tmp_path: Path) -> None:
    """There aiohttp does it: bare deflate is taken, what follows the end of a gzip body is not."""
    bare = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    answers = {
        ("deflate", bare.compress(_COMPLETION) + bare.flush()): 200,
        ("gzip", gzip.compress(_COMPLETION[:40]) + gzip.compress(_COMPLETION[40:])): 200,
        ("gzip", gzip.compress(_COMPLETION) + b"garbage"): 502,
    }
    async with open_door(tmp_path) as opened, open_http_door() as door:
        for (coding, body), status in answers.items():
            stream = opened.stream()
            await stream.request(request_body())
            await stream.forwarded()
            await stream.upstream(200, (*JSON, ("content-encoding", coding)), body)
            assert (await stream.complete()).status == status, (coding, status)
            door.chat.script(answer(200, (*JSON, ("content-encoding", coding)), [body]))
            assert (await door.ask(post_bytes({"model": "demo-model", "input": "x"}))).status == status


# Silence


async def test_a_silent_stream_gets_comments_after_its_first_part(tmp_path: Path) -> None:
    async with open_door(tmp_path, keepalive=0.01) as opened:
        stream = await _streaming(opened)
        await stream.response_body(text_stream("a")[0])
        await stream.until(lambda: stream.client.body.count(KEEPALIVE) >= 3)
        await stream.response_body(b"".join(text_stream("late")[1:]), end=True)
        client = await stream.complete()
        assert KEEPALIVE in client.parts
        assert sse_events(client.body)[-2:] == ["response.completed", "[DONE]"]


async def test_no_comment_before_the_first_part_or_in_json(tmp_path: Path) -> None:
    async with open_door(tmp_path, keepalive=0.001) as opened:
        waiting = await _streaming(opened)
        json_stream = opened.stream()
        await json_stream.request(request_body())
        await json_stream.forwarded()
        await json_stream.response_headers(200, JSON)
        await json_stream.response_body(_COMPLETION[:10])
        talking = await _streaming(opened)
        await talking.response_body(text_stream("a")[0])
        await talking.until(lambda: talking.client.body.count(KEEPALIVE) >= 10)
        for quiet in (waiting, json_stream):
            quiet.check()
            assert quiet.client.status is None
        await json_stream.response_body(_COMPLETION[10:], end=True)
        assert KEEPALIVE not in (await json_stream.complete()).body


# Continuation


async def test_who_sees_the_end_can_continue_from_it(tmp_path: Path) -> None:
    async with open_door(tmp_path) as opened:
        stream = await _streaming(opened)
        await stream.response_body(b"".join(text_stream("first")))
        await stream.until(lambda: b"response.completed" in stream.client.body)
        (response_id,) = opened.store.records
        following = opened.stream()
        await following.request(request_body("next", previous_response_id=response_id))
        forwarded = await following.forwarded()
        assert [message["role"] for message in json.loads(forwarded.body)["messages"]] == ["user", "assistant", "user"]
