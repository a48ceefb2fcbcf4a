"""Converts the WebSocket frames of `/v1/responses`: client frames into request bodies, and events into frames.

This module handles the fields that only frames have (`type`, `generate`, `stream_id`, `background`), and makes frames
of events and errors. `doors/http/websocket.py` handles the sockets, and the order of a connection's responses. The
exchange handles all other fields of a request.

Sources: the Open Responses specification of WebSockets defines one response at a time, the error envelope and the
missing `[DONE]`. Recorded frames of Codex always have `stream: true`, and the first has `generate: false`. OpenAI
defines `stream_id`.

Invariants: each frame to the client is one event or one error, as a whole JSON object. For any bytes from the client,
`read_client_frame` returns a `ClientFrame`, a `FrameReply` or None, or raises an `ApiError`.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import Raw, Struct

from antiphon.errors import (
    ApiError,
    InternalError,
    InvalidRequest,
    UpstreamFailed,
    invalid_parameter,
    invalid_type,
    unsupported_parameter,
    wrong_value,
)
from antiphon.translation.answer.sse import EventTooLarge, SseDecoder
from antiphon.translation.request.checks import has_half_characters, not_json
from antiphon.translation.values import ServerSentEvent
from antiphon.types.json import NULL, encode, given, try_decode
from antiphon.types.transport import Headers

_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_OBJECT = msgspec.json.Decoder(dict[str, object])
_STRING = msgspec.json.Decoder(str | None)
_STREAM_ID_LENGTH = 256
_TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete"})
# Events with which clients confirm that they have processed a response. Such an event needs no reply.
_ACKNOWLEDGEMENTS = frozenset({"response.processed"})
# The HTTP headers that an error frame repeats, because clients need them to time a retry.
_TOLD = frozenset({"retry-after", "retry-after-ms", "x-should-retry", "x-request-id"})
_TOLD_PREFIX = "x-ratelimit-"


class _FrameType(Struct):
    type: str


_KIND = msgspec.json.Decoder(_FrameType)


@dataclass(frozen=True, slots=True)
class ClientFrame:
    """A `response.create` frame of a client. `body` is the equivalent body for `POST /v1/responses`, with `stream:
    true`.

    If `generate` is False, the client wants no model call (a prewarm). `lane` is the frame's `stream_id` as JSON, or
    empty.

        {"type": "response.create", "model": "qwen3", "input": "Hi", "stream_id": "a"}
    """

    body: bytes
    previous_response_id: str | None
    generate: bool = True
    lane: bytes = b""


@dataclass(frozen=True, slots=True)
class FrameReply:
    """The single frame that answers a client's frame. `left_out` is the type of the client's event if Antiphon does not
    know this type, or else empty."""

    frame: bytes
    left_out: str = ""


def read_client_frame(data: bytes, *, strict: bool = False) -> ClientFrame | FrameReply | None:
    """Parse a text frame of a client.

    Returns a `ClientFrame` for `response.create`, a `FrameReply` for an event that Antiphon refuses, and None if the
    frame needs no reply. Raises `InvalidRequest` for a frame that is wrong, and in strict mode for an unknown event.
    """
    try:
        fields = _FIELDS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if has_half_characters(data):
            raise not_json(data, what="The frame") from None
        raise InvalidRequest(
            'The frame is not a JSON object. Send {"type": "response.create", …} as one text frame.',
            code="invalid_json",
        ) from None
    kind = _text(fields.pop("type", None), "type")
    if kind in _ACKNOWLEDGEMENTS:
        return None
    if kind == "response.steer":
        return FrameReply(_not_steered(fields))
    if kind == "response.inject":
        return FrameReply(_not_injected(fields))
    if kind is None or (kind != "response.create" and strict):
        shown = f"'{kind[:64]}'" if kind is not None else "none"
        raise wrong_value(f"Invalid event type: {shown}. The only supported type is 'response.create'.", "type")
    if kind != "response.create":
        return _left_out(kind, fields)
    lane = fields.pop("stream_id", None)
    if (name := _text(lane, "stream_id")) is not None and len(name) > _STREAM_ID_LENGTH:
        raise invalid_parameter(
            "stream_id", f"the value is longer than {_STREAM_ID_LENGTH} characters", "string_above_max_length"
        )
    if _flag(fields.pop("background", None), "background", default=False):
        raise unsupported_parameter(
            "Background responses cannot be created on a WebSocket; use POST /v1/responses.", "background"
        )
    generate = _flag(fields.pop("generate", None), "generate", default=True)
    previous = fields.get("previous_response_id")
    # The exchange reports the error if the id is not a string.
    previous_id = try_decode(_STRING, previous) if previous is not None else None
    # A WebSocket always streams. Codex sends `stream: true`, and other clients leave it out.
    fields["stream"] = Raw(b"true")
    return ClientFrame(
        encode(fields), previous_id, generate, bytes(lane) if lane is not None and name is not None else b""
    )


def _not_steered(fields: dict[str, Raw]) -> bytes:
    """Return the event with which OpenAI sends back the input of a `response.steer` that no response accepted. The
    client sends the input again with its next request."""
    given_back = {name: fields.get(name, NULL) for name in ("previous_response_id", "input")}
    error = {
        "type": "invalid_request_error",
        "code": "steering_not_supported",
        "message": (
            "This server cannot add input to a running response. Send the input with your next 'response.create'."
        ),
    }
    return encode({"type": "response.steer.failed", "sequence_number": 0, "steer": given_back, "error": error})


def _not_injected(fields: dict[str, Raw]) -> bytes:
    """Return OpenAI's answer to a `response.inject` for a response that has ended. The client then sends the input in a
    request that continues that response.

    A connection handles the next frame only after the running response has ended, so a `response.inject` always comes
    too late. The answer must be the event that OpenAI sends (`response.inject.failed`). With any other event, the
    client would wait forever."""
    told: dict[str, object] = {name: fields[name] for name in ("response_id", "stream_id") if name in fields}
    error = {
        "code": "response_already_completed",
        "message": "This response has ended. Send the input with a 'response.create' that continues this response.",
    }
    told |= {"input": fields.get("input", NULL), "error": error}
    return encode({"type": "response.inject.failed", "sequence_number": 0, **told})


def _left_out(kind: str, fields: dict[str, Raw]) -> FrameReply:
    """Antiphon's own event that reports an unknown event of the client. Clients ignore events that they do not know."""
    name = f"event:{kind[:64]}"
    told: dict[str, object] = {"type": "antiphon.ignored", "sequence_number": 0, "ignored": [name]}
    lane = fields.get("stream_id")
    return FrameReply(encode(told if lane is None else told | {"stream_id": lane}), name)


def _text(value: Raw | None, name: str) -> str | None:
    try:
        return _STRING.decode(value) if value is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise invalid_type(name, "expected a string") from None


def _flag(value: Raw | None, name: str, *, default: bool) -> bool:
    if value is None or not given(value):
        return default
    try:
        return msgspec.json.decode(value, type=bool)
    except msgspec.DecodeError:
        raise invalid_type(name, "expected a boolean") from None


class EventFrames:
    """Converts the events that Antiphon itself generates into frames. The class always gets whole events.

    `told` has headers of the answer. The first event carries the headers in `told` as a field `headers`, because a
    WebSocket message has no HTTP headers.
    """

    def __init__(self, lane: bytes = b"", told: Headers = ()) -> None:
        self._tail = b',"stream_id":%b}' % lane if lane else b""
        self._told = b',"headers":%b}' % encode(dict(told)) if told else b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return a frame for each event in `data`. Comments and the final `[DONE]` give no frame."""
        return [
            self.framed(event)
            for event in (part.partition(b"data: ")[2] for part in data.split(b"\n\n"))
            if event[:1] == b"{"
        ]

    def framed(self, event: bytes) -> bytes:
        """Return the frame of one event, given as a JSON object."""
        if self._told:
            event, self._told = event[:-1] + self._told, b""
        return event[:-1] + self._tail if self._tail else event

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return the frame for an error of this response. The log names the response by `request_id`."""
        return error_frame(error, request_id, self._tail)

    def missing(self) -> ApiError | None:
        """Return the error to send at the end if the stream had no terminal event.

        The result is None for Antiphon's own streams, which always have a terminal event.
        """
        return None


class NativeFrames(EventFrames):
    """Converts the event stream of a native upstream into frames. A chunk of the stream may end in the middle of an
    event.

    The class holds an `error` event back until the end of the stream. On a WebSocket, an error ends the response, but
    in an event stream a terminal event may still follow.
    """

    def __init__(self, lane: bytes, limit: int) -> None:
        super().__init__(lane)
        self._decoder = SseDecoder(limit)
        self._error: bytes | None = None
        self._ended = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return a frame for each event that `data` completes.

        Raises `UpstreamFailed` (502, `upstream_too_large`) for an event over the size limit.
        """
        try:
            return self._frames(self._decoder.feed(data))
        except EventTooLarge:
            raise UpstreamFailed("The upstream sent an event that is too large.", code="upstream_too_large") from None

    def _frames(self, events: list[ServerSentEvent]) -> list[bytes]:
        found = []
        for event in events:
            read = try_decode(_KIND, event.data)
            # Data that is not an event, such as `[DONE]`, gives no frame.
            if read is None or self._ended:
                continue
            kind = read.type
            if kind == "error":
                self._error = event.data
                continue
            self._ended = kind in _TERMINAL
            found.append(self.framed(event.data))
        return found

    def missing(self) -> ApiError | None:
        """Return the `error` event that the class held back, or an error for a stream without a terminal event.

        The result is None if the stream had a terminal event. The error of a cut stream is a 502 (`upstream_cut`).
        """
        if self._ended:
            return None
        if self._error is None:
            return UpstreamFailed("The upstream broke off its answer.", code="upstream_cut")
        # Servers put the fields either into an `error` object or next to `type`.
        found = try_decode(_OBJECT, self._error) or {}
        nested = found.get("error")
        return answered_error(502, (), encode({"error": nested if isinstance(nested, dict) else found}))


def error_frame(error: ApiError, request_id: str, tail: bytes = b"") -> bytes:
    """Return the frame `{type: "error", status, error: {message, type, param, code}}` of the Open Responses
    specification, as JSON.

    The frame and its `error` also have `headers` if the answer has headers about retries or rate limits. `tail` is the
    end of the frame, which contains the `stream_id`.
    """
    told = {name: value for name, value in error.headers if name in _TOLD or name.startswith(_TOLD_PREFIX)}
    fields = error.fields(request_id)
    frame: dict[str, object] = {"type": "error", "status": error.status, "error": fields}
    if told:
        # OpenAI's SDK reads `headers` inside `error`, and Codex reads them next to it.
        frame |= {"error": {**fields, "headers": told}, "headers": told}
    whole = encode(frame)
    return whole[:-1] + tail if tail else whole


def answered_error(status: int, headers: Headers, body: bytes) -> ApiError:
    """Return the error for an upstream's HTTP answer that is not the expected event stream.

    The error repeats the status and the error object of the answer, if the answer has them.
    """
    found = (try_decode(_OBJECT, body) or {}).get("error") if status >= 400 else None
    if isinstance(found, dict):
        parts = {
            name: value if isinstance(value := found.get(name), str) else None for name in ("type", "param", "code")
        }
        message = found.get("message")
        return ApiError(
            message if isinstance(message, str) else "The upstream refused the request.",
            status=status,
            type=parts["type"] or ("invalid_request_error" if status < 500 else "server_error"),
            param=parts["param"],
            code=parts["code"],
            headers=headers,
        )
    if status >= 400:
        return ApiError("The upstream refused the request.", status=status, code="upstream_error", headers=headers)
    if status == 200:
        return UpstreamFailed("The upstream did not answer with a stream.", code="upstream_invalid")
    return InternalError("The request ended without a response.")
