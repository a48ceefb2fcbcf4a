"""What has no end of its own is ended: by the time it takes, and by the bytes that come without output."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.states import FOREVER, State
from antiphon.engine.ports.actions import RequestHead, RunTools, SendBody, SendHead
from tests.support.exchanges import JSON, SSE, Outcome, limits, make_exchange, pump
from tests.support.hosted_tools import ScriptedTools
from tests.support.judge import check_stream, parse_sse

_HEAD = RequestHead("POST", "/v1/responses", (), "owner")
_CHUNK = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
_END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
_LIMITS = TimeoutSettings(response=100.0, no_output=16.0, error_body=5.0)
_SEARCH = [{"type": "file_search", "vector_store_ids": ["vs_1"]}]


def _events(body: bytes) -> list[Any]:
    events = parse_sse(body)
    check_stream(events)
    return events


def _begun(*, stream: bool = True, **options: Any) -> tuple[ResponseExchange, Outcome]:
    exchange, outcome = make_exchange(times=_LIMITS, **options), Outcome()
    exchange.receive_request(_HEAD, json.dumps({"model": "m", "input": "hi", "stream": stream}).encode())
    pump(exchange, outcome)
    exchange.receive_time(1000.0)
    return exchange, outcome


def _answering(*, stream: bool = True, **options: object) -> tuple[ResponseExchange, Outcome]:
    exchange, outcome = _begun(stream=stream, **options)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK)
    pump(exchange, outcome)
    exchange.receive_time(1000.0)
    return exchange, outcome


# Bytes without output

_CHOICES = json.dumps({"choices": [{"index": number, "delta": {"content": "x"}} for number in range(200)]}).encode()
_LOGPROBS = json.dumps(
    {"choices": [{"delta": {"content": "x"}, "logprobs": {"content": [{"token": "x", "logprob": -1}] * 100}}]}
).encode()
_SOURCE = {"type": "url_citation", "url_citation": {"url": "http://a/", "start_index": 0, "end_index": 1}}
_ANNOTATIONS = json.dumps({"choices": [{"delta": {"content": "x", "annotations": [_SOURCE] * 50}}]}).encode()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "part",
    [
        b": x\n\n" * 100,
        b'data: {"choices":[{"delta":{"content":""}}]}\n\n' * 10,
        b'data: {"choices":[{"delta":{"content":" "}}]}\n\n' * 10,
        b"data: " + _CHOICES + b"\n\n",
        b"data: " + _LOGPROBS + b"\n\n",
        b"data: " + _ANNOTATIONS + b"\n\n",
    ],
    ids=["comments", "empty", "blank", "choices", "logprobs", "annotations"],
)
def test_a_stream_without_output_ends(part: bytes, stream: bool) -> None:
    exchange, outcome = _begun(stream=stream, limits=limits(no_output_bytes=20_000))
    exchange.receive_upstream_head(200, SSE)
    sent = 0
    while not exchange.done:
        assert sent < 1_000_000, "it goes on for ever"
        exchange.receive_upstream_data(part)
        sent += len(part)
        pump(exchange, outcome)
    assert outcome.finish is not None
    if stream:
        failed = _events(outcome.body)[-1]["response"]
        assert (failed["status"], failed["error"]["code"]) == ("failed", "upstream_no_output")
        assert "limits.no_output_bytes" in failed["error"]["message"]
        assert outcome.records[-1].status == "failed"
    else:
        assert outcome.head is not None
        assert (outcome.head.status, outcome.json["error"]["code"]) == (502, "upstream_no_output")


def test_output_pays_for_what_comes_with_it() -> None:
    exchange, outcome = _begun(limits=limits(no_output_bytes=5_000))
    exchange.receive_upstream_head(200, SSE)
    wordy = b'data: {"choices":[{"delta":{"content":"word"}}],"about":"%s"}\n\n' % (b"x" * 3000)
    for _ in range(100):
        exchange.receive_upstream_data(wordy)
        exchange.receive_upstream_data(b": comment\n\n" * 50)
    exchange.receive_upstream_data(_END)
    pump(exchange, outcome)
    assert outcome.finish is not None and outcome.finish.outcome == "completed"


def test_what_ends_with_too_much_is_complete_all_the_same() -> None:
    exchange, outcome = _answering(limits=limits(no_output_bytes=2_000))
    exchange.receive_upstream_data(b": x\n\n" * 1000 + _END)
    pump(exchange, outcome)
    assert outcome.finish is not None and outcome.finish.outcome == "completed"


# Time


def test_a_stream_that_goes_on_without_output_ends_in_time() -> None:
    exchange, outcome = _answering()
    at = due = 1000.0
    while not exchange.done:
        assert at < 1100, "it goes on for ever"
        exchange.receive_upstream_data(b": still here\n\n")
        at = due
        due = exchange.receive_time(at)
        pump(exchange, outcome)
    assert 1016 <= at <= 1018
    failed = _events(outcome.body)[-1]["response"]
    assert failed["error"]["code"] == "upstream_no_output"
    assert "timeouts.no_output" in failed["error"]["message"]
    assert failed["output"][0]["content"][0]["text"] == "Hi"


def test_output_moves_the_moment_on() -> None:
    exchange, _ = _answering()
    at = 1000.0
    for _ in range(6):
        at += 15
        exchange.receive_upstream_data(_CHUNK)
        exchange.receive_time(at)
    assert exchange.state is State.STREAMING


@pytest.mark.parametrize("headed", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_response_has_a_time_as_a_whole(stream: bool, headed: bool) -> None:
    exchange, outcome = _answering(stream=stream) if headed else _begun(stream=stream)
    at = 1000.0
    while at < 1099:
        at += 10
        if headed:
            exchange.receive_upstream_data(_CHUNK)
        assert exchange.receive_time(min(at, 1099.9)) <= 1100
    assert not exchange.done
    assert exchange.receive_time(1100.0) == FOREVER
    pump(exchange, outcome)
    assert outcome.head is not None
    if stream and headed:
        failed = _events(outcome.body)[-1]["response"]
        assert failed["error"]["code"] == "response_timeout"
        assert "timeouts.response" in failed["error"]["message"]
        assert outcome.records[-1].status == "failed"
    else:
        assert (outcome.head.status, outcome.json["error"]["code"]) == (504, "response_timeout")


def test_tools_are_part_of_the_whole() -> None:
    exchange, outcome = make_exchange(times=_LIMITS, tool_types=ScriptedTools.types), Outcome()
    body = json.dumps({"model": "m", "input": "hi", "stream": True, "tools": _SEARCH}).encode()
    exchange.receive_request(_HEAD, body)
    pump(exchange, outcome, tools=ScriptedTools())
    exchange.receive_time(1000.0)
    exchange.receive_upstream_head(200, SSE)
    call = b'{"index":0,"id":"a","function":{"name":"file_search","arguments":"{}"}}'
    exchange.receive_upstream_data(b'data: {"choices":[{"delta":{"tool_calls":[%b]}}]}\n\n' % call + _END)
    running = [action for action in exchange.actions() if not _keep(action, outcome)]
    assert isinstance(running[-1], RunTools)
    assert exchange.receive_time(1099.0) == 1100.0
    exchange.receive_time(1100.0)
    pump(exchange, outcome)
    assert _events(outcome.body)[-1]["response"]["error"]["code"] == "response_timeout"


def _keep(action: object, outcome: Outcome) -> bool:
    """Note what the client gets; whether it was that."""
    if isinstance(action, SendHead):
        outcome.head = action
    elif isinstance(action, SendBody):
        outcome.body += action.data
    return isinstance(action, SendHead | SendBody)


# The body of an error


def test_an_error_without_an_end_is_an_error() -> None:
    exchange, outcome = _begun(limits=limits(upstream_error_bytes=1000))
    exchange.receive_upstream_head(429, JSON)
    exchange.receive_upstream_data(b'{"error":{"message":"slow down"}}' + b" " * 900)
    assert exchange.state is State.REFUSED
    exchange.receive_upstream_data(b" " * 500)
    pump(exchange, outcome)
    assert outcome.head is not None and outcome.finish is not None
    assert (outcome.head.status, outcome.json["error"]["message"]) == (429, "slow down")


def test_an_error_that_does_not_come_is_an_error_in_time() -> None:
    exchange, outcome = _begun()
    exchange.receive_upstream_head(503, JSON)
    assert exchange.receive_time(1010.0) == 1015.0
    exchange.receive_upstream_data(b'{"error":')
    exchange.receive_time(1014.0)
    assert not exchange.done
    exchange.receive_time(1015.0)
    pump(exchange, outcome)
    assert outcome.head is not None
    assert (outcome.head.status, outcome.json["error"]["type"]) == (503, "server_error")
