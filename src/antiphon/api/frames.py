"""WebSocket frames of `/v1/responses`: turns client frames into request bodies, and events into frames.

Lives here: the meaning of a frame's own fields (`type`, `generate`, `stream_id`, `background`), the framing of events
and errors. Not here: sockets and turns (`doors/http/websocket.py`), and what a request's other fields mean (the
exchange).

Sources: Open Responses' WebSocket part (one response at a time, the error envelope, no `[DONE]`), Codex's recorded
frames (`stream: true` is always there, `generate: false` first), OpenAI's `stream_id`.

Invariant: one frame out is one event or one error, and a whole JSON object. For any bytes that arrive, the outcome is a
`ClientFrame`, a `FrameReply`, None or an `ApiError`.
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
# Sent by clients that tell when they are done with a response; asks for nothing.
_ACKNOWLEDGEMENTS = frozenset({"response.processed"})
# What an error envelope repeats of an HTTP answer: what says when to try again, and whose limits they are.
_TOLD = frozenset({"retry-after", "retry-after-ms", "x-should-retry", "x-request-id"})
_TOLD_PREFIX = "x-ratelimit-"


class _FrameType(Struct):
    type: str


_KIND = msgspec.json.Decoder(_FrameType)


@dataclass(frozen=True, slots=True)
class ClientFrame:
    """A `response.create`: `body` is what `POST /v1/responses` would get, a stream asked for.

    `generate` False asks for no model call (a prewarm). `lane` is the `stream_id` as JSON, empty without one.
    """

    body: bytes
    previous_response_id: str | None
    generate: bool = True
    lane: bytes = b""


@dataclass(frozen=True, slots=True)
class FrameReply:
    """The one frame that answers a client's frame. `left_out` names an event that Antiphon does not know."""

    frame: bytes
    left_out: str = ""


def read_client_frame(data: bytes, *, strict: bool = False) -> ClientFrame | FrameReply | None:
    """Read a text frame; None when it asks for nothing. Raises `InvalidRequest`, in strict mode for unknown events
    too."""
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
        raise wrong_value(f"Invalid event type: {shown}. Supported is 'response.create'.", "type")
    if kind != "response.create":
        return _left_out(kind, fields)
    lane = fields.pop("stream_id", None)
    if (name := _text(lane, "stream_id")) is not None and len(name) > _STREAM_ID_LENGTH:
        raise invalid_parameter(
            "stream_id", f"it is longer than {_STREAM_ID_LENGTH} characters", "string_above_max_length"
        )
    if _flag(fields.pop("background", None), "background", default=False):
        raise unsupported_parameter(
            "Background responses cannot be created on a WebSocket; use POST /v1/responses.", "background"
        )
    generate = _flag(fields.pop("generate", None), "generate", default=True)
    previous = fields.get("previous_response_id")
    # The exchange says what is wrong with one that is no string.
    previous_id = try_decode(_STRING, previous) if previous is not None else None
    # Codex says so, others leave it out: on a socket there is nothing but a stream.
    fields["stream"] = Raw(b"true")
    return ClientFrame(
        encode(fields), previous_id, generate, bytes(lane) if lane is not None and name is not None else b""
    )


def _not_steered(fields: dict[str, Raw]) -> bytes:
    """OpenAI's way of giving input back that no response took: the client sends it with its next request."""
    given_back = {name: fields.get(name, NULL) for name in ("previous_response_id", "input")}
    error = {
        "type": "invalid_request_error",
        "code": "steering_not_supported",
        "message": "A response cannot be steered here. Send the input with your next 'response.create'.",
    }
    return encode({"type": "response.steer.failed", "sequence_number": 0, "steer": given_back, "error": error})


def _not_injected(fields: dict[str, Raw]) -> bytes:
    """OpenAI's answer to input for a response that has ended. The client then sends the input in a request that
    continues it.

    A connection handles a frame only after the response before it, so the response is always over. A client that got an
    unknown answer would wait for ever."""
    told: dict[str, object] = {name: fields[name] for name in ("response_id", "stream_id") if name in fields}
    error = {
        "code": "response_already_completed",
        "message": "This response is over. Send the input with a 'response.create' that continues it.",
    }
    told |= {"input": fields.get("input", NULL), "error": error}
    return encode({"type": "response.inject.failed", "sequence_number": 0, **told})


def _left_out(kind: str, fields: dict[str, Raw]) -> FrameReply:
    """Antiphon's event that names an unknown event of the client. Clients pass over events that they do not know."""
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
    """Frames from the events of Antiphon's builder, which arrive as whole events.

    `told`: headers of the answer that the first event carries as `headers`, since a socket has no head of a response.
    """

    def __init__(self, lane: bytes = b"", told: Headers = ()) -> None:
        self._tail = b',"stream_id":%b}' % lane if lane else b""
        self._told = b',"headers":%b}' % encode(dict(told)) if told else b""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames in these bytes; comments and the sentinel are none."""
        return [
            self.framed(event)
            for event in (part.partition(b"data: ")[2] for part in data.split(b"\n\n"))
            if event[:1] == b"{"
        ]

    def framed(self, event: bytes) -> bytes:
        if self._told:
            event, self._told = event[:-1] + self._told, b""
        return event[:-1] + self._tail if self._tail else event

    def error(self, error: ApiError, request_id: str) -> bytes:
        """The frame for an error of this turn. `request_id` is the turn's id in the log."""
        return error_frame(error, request_id, self._tail)

    def missing(self) -> ApiError | None:
        """The error to send at the end, if the stream had no terminal event. Antiphon's own streams always have one."""
        return None


class NativeFrames(EventFrames):
    """Frames from a native upstream's stream, however its bytes are split and written. It holds an `error` event back,
    because that ends a turn on a WebSocket, while in a stream a terminal event follows it.
    """

    def __init__(self, lane: bytes, limit: int) -> None:
        super().__init__(lane)
        self._decoder = SseDecoder(limit)
        self._error: bytes | None = None
        self._ended = False

    def feed(self, data: bytes) -> list[bytes]:
        """The frames in these bytes. Raises `UpstreamFailed` for an event beyond the limit."""
        try:
            return self._frames(self._decoder.feed(data))
        except EventTooLarge:
            raise UpstreamFailed("The upstream sent an event that is too large.", code="upstream_too_large") from None

    def _frames(self, events: list[ServerSentEvent]) -> list[bytes]:
        found = []
        for event in events:
            read = try_decode(_KIND, event.data)
            # The sentinel, and what is no event, says nothing to anybody.
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
        """The error that was held back, or that the stream has no end."""
        if self._ended:
            return None
        if self._error is None:
            return UpstreamFailed("The upstream broke off its answer.", code="upstream_cut")
        # Either spelling: the fields in an `error` object, or beside the type.
        found = try_decode(_OBJECT, self._error) or {}
        nested = found.get("error")
        return answered_error(502, (), encode({"error": nested if isinstance(nested, dict) else found}))


def error_frame(error: ApiError, request_id: str, tail: bytes = b"") -> bytes:
    """`{type: "error", status, error: {message, type, param, code}}`; `headers` in both when they say something."""
    told = {name: value for name, value in error.headers if name in _TOLD or name.startswith(_TOLD_PREFIX)}
    fields = error.fields(request_id)
    frame: dict[str, object] = {"type": "error", "status": error.status, "error": fields}
    if told:
        # OpenAI's SDK reads them inside the error, Codex beside it.
        frame |= {"error": {**fields, "headers": told}, "headers": told}
    whole = encode(frame)
    return whole[:-1] + tail if tail else whole


def answered_error(status: int, headers: Headers, body: bytes) -> ApiError:
    """The error that an HTTP answer carries instead of a stream."""
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
    return InternalError("There was no answer.")
