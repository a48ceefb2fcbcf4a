"""ext_proc messages as plain values; the only file that sees the generated message classes of the API.

Lives here: decoding what Envoy sends and encoding what it is answered. Not here: which answer is legal when
(`stream.py`, `relay.py`, `immediate_response.py`).

Invariants: header values travel in `raw_value` (Envoy shows values in `value` as empty); a header that is set replaces
what was there, and a name that is given twice arrives twice; header bytes that are not UTF-8 survive the round trip.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.body_messages import REQUEST_BODY, RESPONSE_BODY, read_part, write_part
from antiphon.doors.extproc.head_messages import dynamic_metadata, header_mutation, within
from antiphon.doors.extproc.head_reader import REQUEST_HEADERS, RESPONSE_HEADERS, read_head
from antiphon.doors.extproc.received import Kind, Received
from antiphon.types.transport import Headers

Metadata = dict[str, str | int]
"""What goes into Envoy's dynamic metadata, under the namespace `antiphon`."""

_NAMESPACE: Final = "antiphon"
# Fields of `ProcessingResponse`, of `HeadersResponse`, and of `CommonResponse`.
_REQUEST_HEADERS: Final = b"\x0a"
_RESPONSE_HEADERS: Final = b"\x12"
_RESPONSE: Final = b"\x0a"
_HEADER_MUTATION: Final = b"\x12"
_CLEAR_ROUTE_CACHE: Final = b"\x28\x01"
_MODES: Final = {number: name for name, number in pb.ProcessingMode.BodySendMode.items()}


_Settings = tuple[tuple[str, str] | None, bool]
"""The two body modes, where a message names them, and whether Envoy ignores the answers."""
_MOST_SETTINGS: Final = 64

_KINDS: Final = {kind.value: kind for kind in Kind}
_BODY_KINDS: Final = {bytes((REQUEST_BODY,)): Kind.REQUEST_BODY, bytes((RESPONSE_BODY,)): Kind.RESPONSE_BODY}
_HEAD_KINDS: Final = {
    bytes((REQUEST_HEADERS,)): Kind.REQUEST_HEADERS,
    bytes((RESPONSE_HEADERS,)): Kind.RESPONSE_HEADERS,
}


def decode(message: bytes) -> Received:
    """Decode one ProcessingRequest. Raises ValueError for bytes that are none."""
    first = message[:1]
    kind = _BODY_KINDS.get(first)
    if kind is not None:
        if (found := read_part(message)) is not None:
            return Received(kind, (), *found)
    elif (kind := _HEAD_KINDS.get(first)) is not None and (head := read_head(message)) is not None:
        headers, end, behind = head
        settings = _settings.get(behind) or _read_settings(behind)
        if settings is not None:
            return Received(kind, headers, b"", end, *settings)
    return _decode_by_classes(message)


_settings: Final[dict[bytes, _Settings]] = {b"": (None, False), b"\x42\x00": (None, False)}


def _read_settings(behind: bytes) -> _Settings | None:
    """What a head message says behind its head, if that is how Envoy is configured and nothing else. Kept, since it is
    the same in every request; None for anything more."""
    try:
        message = pb.ProcessingRequest.FromString(behind)
    except DecodeError:
        return None
    settings = _modes(message), message.observability_mode
    message.ClearField("protocol_config")
    message.ClearField("observability_mode")
    if message.SerializeToString() not in (b"", b"\x42\x00"):
        # Attributes, metadata of other filters, or a second head.
        return None
    if len(_settings) < _MOST_SETTINGS:
        _settings[behind] = settings
    return settings


def _modes(request: pb.ProcessingRequest) -> tuple[str, str] | None:
    if not request.HasField("protocol_config"):
        return None
    config = request.protocol_config
    asked, answered = config.request_body_mode, config.response_body_mode
    return _MODES.get(asked) or str(asked), _MODES.get(answered) or str(answered)


def _decode_by_classes(message: bytes) -> Received:
    """Any message, of whatever form."""
    try:
        request = pb.ProcessingRequest.FromString(message)
    except DecodeError as error:
        raise ValueError("not a ProcessingRequest") from error
    name = request.WhichOneof("request")
    if name == "response_body":
        part = request.response_body
        return Received(Kind.RESPONSE_BODY, body=part.body, end=part.end_of_stream)
    if name == "request_body":
        part = request.request_body
        return Received(Kind.REQUEST_BODY, body=part.body, end=part.end_of_stream)
    received = Received(_KINDS.get(name or "", Kind.OTHER), modes=_modes(request), observing=request.observability_mode)
    if name == "request_headers" or name == "response_headers":
        head = request.request_headers if name == "request_headers" else request.response_headers
        received.headers = tuple(
            [
                (
                    header.key.lower(),
                    raw.decode("utf-8", "surrogateescape") if (raw := header.raw_value) else header.value,
                )
                for header in head.headers.headers
            ]
        )
        received.end = head.end_of_stream
    return received


def _each_once(headers: Headers) -> Headers:
    """The headers with every name once: of several, Envoy 1.40 takes the last alone, whatever the append action.

    Values of one name are a list, but for cookies: of those the last remains.
    """
    names = dict(headers)
    if len(names) == len(headers):
        return headers
    lists: dict[str, list[str]] = {}
    for name, value in headers:
        lists.setdefault(name, []).append(value)
    return tuple((name, values[-1] if name == "set-cookie" else ", ".join(values)) for name, values in lists.items())


def _told(metadata: Metadata | None) -> bytes:
    """What is put behind an answer that tells Envoy this."""
    if not metadata:
        return b""
    return dynamic_metadata(_NAMESPACE, metadata)


def request_head(headers: Headers, remove: tuple[str, ...], metadata: Metadata | None = None) -> bytes:
    """Answer the request headers: Envoy goes on with the request; the route is chosen anew."""
    common = within(_HEADER_MUTATION, header_mutation(_each_once(headers), remove)) + _CLEAR_ROUTE_CACHE
    return within(_REQUEST_HEADERS, within(_RESPONSE, common)) + _told(metadata)


def request_body(body: bytes | memoryview, end: bool) -> bytes:
    """A part of the new request body."""
    if body:
        return write_part(REQUEST_BODY, body, end)
    response = pb.ProcessingResponse()
    streamed = response.request_body.response.body_mutation.streamed_response
    streamed.body = b""
    streamed.end_of_stream = end
    return response.SerializeToString()


def response_head(headers: Headers, remove: tuple[str, ...]) -> bytes:
    """Answer the response headers; the body follows in parts."""
    common = within(_HEADER_MUTATION, header_mutation(_each_once(headers), remove))
    return within(_RESPONSE_HEADERS, within(_RESPONSE, common))


def response_replaced(headers: Headers, remove: tuple[str, ...], body: bytes, metadata: Metadata | None) -> bytes:
    """Answer the headers of a response that has no body with a whole body."""
    response = pb.ProcessingResponse()
    common = response.response_headers.response
    common.status = pb.CommonResponse.CONTINUE_AND_REPLACE
    common.header_mutation.MergeFromString(header_mutation(_each_once(headers), remove))
    common.body_mutation.body = body
    return response.SerializeToString() + _told(metadata)


def response_body(body: bytes | memoryview, end: bool, metadata: Metadata | None = None) -> bytes:
    """A part of the new response body."""
    if body:
        part = write_part(RESPONSE_BODY, body, end)
        return part + _told(metadata) if metadata else part
    response = pb.ProcessingResponse()
    streamed = response.response_body.response.body_mutation.streamed_response
    streamed.body = b""
    streamed.end_of_stream = end
    return response.SerializeToString() + _told(metadata)


def response_trailers() -> bytes:
    """Answer the response trailers: none are changed."""
    response = pb.ProcessingResponse()
    response.response_trailers.SetInParent()
    return response.SerializeToString()


def immediate(status: int, headers: Headers, body: bytes, details: str, metadata: Metadata | None = None) -> bytes:
    """Answer the client here and now, whole; legal until a response head went out, also in the middle of an upload.

    `details` is what the access log shows as %RESPONSE_CODE_DETAILS%.
    """
    response = pb.ProcessingResponse()
    answer = response.immediate_response
    answer.status.code = status
    answer.headers.MergeFromString(header_mutation(_each_once(headers)))
    answer.body = body
    answer.details = details
    return response.SerializeToString() + _told(metadata)


def local_head(status: int, headers: Headers, metadata: Metadata | None = None) -> bytes:
    """Begin a streamed local answer; legal only after the request's end of stream."""
    response = pb.ProcessingResponse()
    head = response.streamed_immediate_response.headers_response
    for name, value in ((":status", str(status)), *_each_once(headers)):
        header = head.headers.headers.add()
        header.key = name
        header.raw_value = value.encode("utf-8", "surrogateescape")
    return response.SerializeToString() + _told(metadata)


def local_body(body: bytes | memoryview, end: bool, metadata: Metadata | None = None) -> bytes:
    """A part of a streamed local answer."""
    response = pb.ProcessingResponse()
    part = response.streamed_immediate_response.body_response
    part.body = bytes(body)
    part.end_of_stream = end
    return response.SerializeToString() + _told(metadata)
