"""Frames of a WebSocket: requests out of them, events and errors into them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.api.frames import (
    ClientFrame,
    EventFrames,
    FrameReply,
    NativeFrames,
    answered_error,
    error_frame,
    read_client_frame,
)
from antiphon.errors import ApiError, InvalidRequest
from antiphon.translation.events.encode import DONE, KEEPALIVE
from tests.support.effort import examples


def test_a_frame_is_a_request_for_a_stream() -> None:
    frame = read_client_frame(
        b'{"type":"response.create", "model":"m","input": [1, 2.50,"\xe2\x82\xac"],"generate":null}'
    )
    assert frame == ClientFrame(b'{"model":"m","input":[1, 2.50,"\xe2\x82\xac"],"stream":true}', None)


def test_what_is_the_sockets_own_does_not_go_on() -> None:
    body = {"type": "response.create", "stream": False, "stream_id": "a", "background": False, "generate": False}
    frame = read_client_frame(json.dumps({**body, "previous_response_id": "resp_1"}).encode())
    assert isinstance(frame, ClientFrame) and json.loads(frame.body) == {
        "stream": True,
        "previous_response_id": "resp_1",
    }
    assert (frame.previous_response_id, frame.generate, frame.lane) == ("resp_1", False, b'"a"')


@given(st.one_of(st.binary(max_size=40), st.dictionaries(st.text(max_size=12), st.none() | st.integers() | st.text())))
@settings(max_examples=examples(200), deadline=None)
def test_any_bytes_are_a_frame_or_an_error(data: Any) -> None:
    if isinstance(data, dict):
        data = json.dumps({"type": "response.create", **data}).encode()
    try:
        frame = read_client_frame(data)
    except InvalidRequest as refused:
        assert refused.code
        return
    if isinstance(frame, FrameReply):
        # An event that is no request, or that nobody here knows.
        assert json.loads(frame.frame)["type"]
        return
    assert isinstance(frame, ClientFrame) and json.loads(frame.body)["stream"] is True


def test_input_that_cannot_steer_is_given_back() -> None:
    asked = {"type": "response.steer", "previous_response_id": "resp_1", "input": [{"role": "user", "content": "wait"}]}
    reply = read_client_frame(json.dumps(asked).encode())
    assert isinstance(reply, FrameReply)
    said = json.loads(reply.frame)
    assert (said["type"], said["error"]["code"]) == ("response.steer.failed", "steering_not_supported")
    assert said["steer"] == {"previous_response_id": "resp_1", "input": asked["input"]}


def test_input_for_a_response_that_is_over_is_given_back() -> None:
    """The Agents SDK's hosted sub-agents send the outputs of tools so, and then again with a request of its own."""
    output = {"type": "function_call_output", "call_id": "call_1", "output": "6"}
    asked = {"type": "response.inject", "response_id": "resp_1", "input": [output], "stream_id": "main"}
    reply = read_client_frame(json.dumps(asked).encode(), strict=True)
    assert isinstance(reply, FrameReply)
    said = json.loads(reply.frame)
    assert (said["type"], said["error"]["code"]) == ("response.inject.failed", "response_already_completed")
    assert (said["response_id"], said["input"], said["stream_id"]) == ("resp_1", [output], "main")
    assert isinstance(said["sequence_number"], int)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), json.dumps({"type": kind, **fields}).encode())


STREAM = (
    _event("response.created", response={"id": "r"}),
    _event("response.output_text.delta", delta="data: {\\n\\n event: x"),
    _event("response.completed", response={"id": "r"}),
)
FRAMES = [json.loads(event.split(b"data: ", 1)[1]) for event in STREAM]


def test_events_become_frames_and_nothing_else_does() -> None:
    frames = EventFrames()
    found = frames.feed(STREAM[0] + STREAM[1]) + frames.feed(KEEPALIVE) + frames.feed(STREAM[2] + DONE)
    assert [json.loads(frame) for frame in found] == FRAMES and frames.missing() is None


def test_lanes_and_headers() -> None:
    frames = EventFrames(b'"l\\"1"', (("antiphon-ignored", "user"),))
    found = [json.loads(frame) for frame in frames.feed(b"".join(STREAM))]
    assert [frame.pop("stream_id") for frame in found] == ['l"1'] * 3
    assert found[0].pop("headers") == {"antiphon-ignored": "user"} and found == FRAMES
    refused = json.loads(frames.error(InvalidRequest("no"), "req_1"))
    assert refused["stream_id"] == 'l"1' and refused["error"]["request_id"] == "req_1"


# Somebody else's stream


def _native(*parts: bytes, limit: int = 1 << 16) -> tuple[list[Any], ApiError | None]:
    frames = NativeFrames(b"", limit)
    found = [json.loads(frame) for part in parts for frame in frames.feed(part)]
    return found, frames.missing()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
def test_any_split_and_spelling(size: int, ends: bytes) -> None:
    whole = (b": hello\n\n" + b"".join(STREAM) + DONE + b"data: nonsense\n\n").replace(b"\n", ends)
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert _native(*parts) == (FRAMES, None)


def test_an_error_event_waits_for_the_end_that_follows_it() -> None:
    failed = _event("response.failed", response={"id": "r", "error": {"code": "c", "message": "m"}})
    found, missing = _native(STREAM[0], _event("error", code="c", message="m"), failed)
    assert [frame["type"] for frame in found] == ["response.created", "response.failed"] and missing is None


@pytest.mark.parametrize(
    "fields", [{"code": "c", "message": "m", "param": None}, {"error": {"code": "c", "message": "m"}}]
)
def test_an_error_event_without_an_end_is_the_end(fields: dict[str, Any]) -> None:
    found, missing = _native(STREAM[0], _event("error", **fields))
    assert len(found) == 1 and missing is not None
    assert (missing.status, missing.code, missing.message) == (502, "c", "m")


def test_a_stream_without_an_end() -> None:
    _, missing = _native(STREAM[0], STREAM[1], STREAM[2][:-5])
    assert missing is not None and (missing.status, missing.code) == (502, "upstream_cut")


def test_what_follows_the_end_is_not_the_next_turns() -> None:
    found, _ = _native(*STREAM, STREAM[1])
    assert found == FRAMES


def test_an_endless_event() -> None:
    with pytest.raises(ApiError) as refused:
        _native(b"data: " + b"x" * 100, limit=50)
    assert refused.value.code == "upstream_too_large"


# Errors


def test_the_envelope() -> None:
    error = InvalidRequest("no", param="p", code="c", headers=(("retry-after", "3"), ("set-cookie", "secret")))
    assert json.loads(error_frame(error, "req_1")) == {
        "type": "error",
        "status": 400,
        "error": {
            "message": "no",
            "type": "invalid_request_error",
            "param": "p",
            "code": "c",
            "request_id": "req_1",
            "headers": {"retry-after": "3"},
        },
        "headers": {"retry-after": "3"},
    }
    assert "headers" not in json.loads(error_frame(InvalidRequest("no"), ""))


@pytest.mark.parametrize(
    ("status", "body", "code", "kind"),
    [
        (400, b'{"error":{"message":"m","type":"t","param":"p","code":"c"}}', "c", "t"),
        (429, b'{"error":{"message":"m"}}', None, "invalid_request_error"),
        (500, b'{"error":{"code":5}}', None, "server_error"),
        (500, b"<html>", "upstream_error", "server_error"),
        (404, b'{"detail":"x"}', "upstream_error", "server_error"),
        (200, b'{"object":"response"}', "upstream_invalid", "server_error"),
        (0, b"", None, "server_error"),
    ],
)
def test_answers_that_are_no_streams(status: int, body: bytes, code: str | None, kind: str) -> None:
    error = answered_error(status, (), body)
    assert error.status == (status if status >= 400 else {200: 502, 0: 500}[status])
    assert (error.code, error.type) == (code, kind) and error.message
