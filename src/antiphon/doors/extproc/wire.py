"""Converts ext_proc messages to and from plain values. No other file uses the generated protobuf classes.

`fast_codec.py` decodes the usual header messages, and handles the usual body chunks. `stream.py`, `relay.py` and
`immediate_response.py` decide when to send an answer.

This module encodes header changes and metadata by hand. The generated protobuf classes take twice the time, because
they create an object for each field of each header. Most headers are equal in every answer, so this module caches their
bytes.

Invariants: header values are in the field `raw_value`, because Envoy treats values in the field `value` as empty.
Setting a header replaces the existing one; several values of one header name become one header with a comma-separated
list. Decoding and encoding a header does not change bytes that are not UTF-8. The cache never holds a value that may be
a credential. The generated protobuf classes decode the hand-written bytes to the same values (a test compares them).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct as AnyObject

from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.fast_codec import (
    REQUEST_BODY,
    REQUEST_HEADERS,
    RESPONSE_BODY,
    RESPONSE_HEADERS,
    read_head,
    read_part,
    varint,
    write_part,
)
from antiphon.doors.extproc.received import MessageKind, Received
from antiphon.engine.ports.actions import Usage
from antiphon.types.transport import BACKEND_HEADER, Headers


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """Envoy's own record of a response's tokens, `envoy.data.ai.v3.TokenUsage`. `estimated` is True while the response
    still runs and the counts are estimates."""

    model: str
    usage: Usage
    estimated: bool = False


Metadata = dict[str, str | int | TokenRecord]
"""Envoy's dynamic metadata by key, for the namespace `antiphon`. Only a `TokenRecord` goes into another namespace, and
its key in this mapping is the name of that namespace."""

TOKEN_USAGE: Final = "envoy.ai.token_usage"
"""The metadata namespace in which Envoy (1.40 or newer) expects token counts as a typed message. Older Envoys ignore
this metadata."""

_NAMESPACE: Final = "antiphon"
_TOKEN_USAGE_TYPE: Final = "type.googleapis.com/envoy.data.ai.v3.TokenUsage"
# A field's first byte contains its number and its wire type: 2 for length-delimited, 1 for eight bytes, 0 for a varint.
_FIRST: Final = b"\x0a"
_SECOND: Final = b"\x12"
_RAW_VALUE: Final = b"\x1a"
_OVERWRITE_IF_EXISTS_OR_ADD: Final = b"\x18\x02"
_DYNAMIC_METADATA: Final = b"\x42"
_TEXT: Final = b"\x1a"
_STRUCT: Final = b"\x2a"
_SMALL: Final = tuple(varint(number) for number in range(1024))
_double: Final = Struct("<d").pack
_LONGEST_TEXT: Final = 256
# Metadata keys with few different values, whose bytes are cached. Response ids, for example, are all different.
_TOLD_ALIKE: Final = frozenset({"status", "model"})
# Headers that have few different values among all clients, so their bytes are cached.
_ALIKE: Final = frozenset(
    {
        *(":method", ":path", ":status", "content-type", "accept", "cache-control", BACKEND_HEADER),
        *(f"x-ratelimit-{word}-{unit}" for word in ("limit", "reset") for unit in ("requests", "tokens")),
    }
)
_KEPT_HEADERS: Final[dict[tuple[str, str], bytes]] = {}
_MOST_KEPT: Final = 1024
_CLEAR_ROUTE_CACHE: Final = b"\x28\x01"
_MODES: Final = {number: name for name, number in pb.ProcessingMode.BodySendMode.items()}


_Settings = tuple[tuple[str, str] | None, bool]
"""The two body modes (None if the message names none), and whether Envoy ignores the answers."""
_MOST_SETTINGS: Final = 64

_KINDS: Final = {kind.value: kind for kind in MessageKind}
_BODY_KINDS: Final = {
    bytes((REQUEST_BODY,)): MessageKind.REQUEST_BODY,
    bytes((RESPONSE_BODY,)): MessageKind.RESPONSE_BODY,
}
_HEAD_KINDS: Final = {
    bytes((REQUEST_HEADERS,)): MessageKind.REQUEST_HEADERS,
    bytes((RESPONSE_HEADERS,)): MessageKind.RESPONSE_HEADERS,
}


def decode(message: bytes) -> Received:
    """Decode one ProcessingRequest. Raises `ValueError` for bytes that are not a ProcessingRequest."""
    first = message[:1]
    kind = _BODY_KINDS.get(first)
    if kind is not None:
        if (found := read_part(message)) is not None:
            return Received(kind, (), *found)
    elif (kind := _HEAD_KINDS.get(first)) is not None and (head := read_head(message)) is not None:
        headers, end, behind = head
        settings = KEPT_SETTINGS.get(behind) or _read_settings(behind)
        if settings is not None:
            return Received(kind, headers, b"", end, *settings)
    return decode_by_classes(message)


KEPT_SETTINGS: Final[dict[bytes, _Settings]] = {b"": (None, False), b"\x42\x00": (None, False)}


def _read_settings(behind: bytes) -> _Settings | None:
    """Decode the settings of Envoy's filter that follow the headers field in a header message. Returns None if other
    fields follow. The result is cached, because Envoy sends the same bytes with every request."""
    try:
        message = pb.ProcessingRequest.FromString(behind)
    except DecodeError:
        return None
    settings = _modes(message), message.observability_mode
    message.ClearField("protocol_config")
    message.ClearField("observability_mode")
    if message.SerializeToString() not in (b"", b"\x42\x00"):
        # The message contains attributes, metadata of other filters, or a second headers field.
        return None
    if len(KEPT_SETTINGS) < _MOST_SETTINGS:
        KEPT_SETTINGS[behind] = settings
    return settings


def _modes(request: pb.ProcessingRequest) -> tuple[str, str] | None:
    if not request.HasField("protocol_config"):
        return None
    config = request.protocol_config
    asked, answered = config.request_body_mode, config.response_body_mode
    return _MODES.get(asked) or str(asked), _MODES.get(answered) or str(answered)


def decode_by_classes(message: bytes) -> Received:
    """Decode a message of any kind and encoding with the generated classes. Raises `ValueError`."""
    try:
        request = pb.ProcessingRequest.FromString(message)
    except DecodeError as error:
        raise ValueError("not a ProcessingRequest") from error
    name = request.WhichOneof("request")
    if name == "response_body":
        part = request.response_body
        return Received(MessageKind.RESPONSE_BODY, body=part.body, end=part.end_of_stream)
    if name == "request_body":
        part = request.request_body
        return Received(MessageKind.REQUEST_BODY, body=part.body, end=part.end_of_stream)
    received = Received(
        _KINDS.get(name or "", MessageKind.OTHER), modes=_modes(request), observing=request.observability_mode
    )
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
        if name == "request_headers" and (left := request.metadata_context.filter_metadata):
            received.metadata = {namespace: _texts(left[namespace]) for namespace in left}
    return received


def _texts(value: AnyObject) -> dict[str, object]:
    """Return the texts and nested objects of a metadata object. Numbers and lists are left out, because no code reads
    them. (The protobuf decoder limits the depth of nested objects.)"""
    found: dict[str, object] = {}
    for name, one in value.fields.items():
        kind = one.WhichOneof("kind")
        if kind == "string_value":
            found[name] = one.string_value
        elif kind == "struct_value":
            found[name] = _texts(one.struct_value)
    return found


def _each_once(headers: Headers) -> Headers:
    """Return the headers with one header for each name. If several headers have one name, Envoy 1.40 applies only the
    last header, whatever the append action.

    The values of one name are joined with commas. For `set-cookie` only the last value remains, because cookies cannot
    be joined.
    """
    names = dict(headers)
    if len(names) == len(headers):
        return headers
    lists: dict[str, list[str]] = {}
    for name, value in headers:
        lists.setdefault(name, []).append(value)
    return tuple((name, values[-1] if name == "set-cookie" else ", ".join(values)) for name, values in lists.items())


def _within(tag: bytes, content: bytes) -> bytes:
    """Encode a length-delimited field, such as a message or a text inside a message."""
    size = len(content)
    return tag + (_SMALL[size] if size < 1024 else varint(size)) + content


def header_mutation(headers: Headers, remove: tuple[str, ...] = ()) -> bytes:
    """Encode a header mutation that sets these headers, each once, and removes the headers with the names in
    `remove`."""
    parts = [_KEPT_HEADERS.get(header) or _set(header) for header in _each_once(headers)]
    parts += [_removed(name) for name in remove]
    return b"".join(parts)


def _set(header: tuple[str, str]) -> bytes:
    name, value = header
    raw = value.encode() if value.isascii() else value.encode("utf-8", "surrogateescape")
    encoded = _before_value(name, len(raw)) + raw + _OVERWRITE_IF_EXISTS_OR_ADD
    if name in _ALIKE and len(value) <= _LONGEST_TEXT:
        if len(_KEPT_HEADERS) >= _MOST_KEPT:
            _KEPT_HEADERS.clear()
        _KEPT_HEADERS[header] = encoded
    return encoded


@lru_cache(maxsize=4096)
def _before_value(name: str, size: int) -> bytes:
    """Encode all bytes of a header that precede its value of `size` bytes."""
    header = _key(name) + _RAW_VALUE + varint(size)
    inside = len(header) + size
    # The outer message also contains the append action, and the tag and the length of the header.
    outside = inside + 1 + len(varint(inside)) + len(_OVERWRITE_IF_EXISTS_OR_ADD)
    return _FIRST + varint(outside) + _FIRST + varint(inside) + header


@lru_cache(maxsize=1024)
def _key(name: str) -> bytes:
    return _within(_FIRST, name.encode())


@lru_cache(maxsize=1024)
def _removed(name: str) -> bytes:
    return _within(_SECOND, name.encode())


def dynamic_metadata(metadata: Metadata | None) -> bytes:
    """Encode the metadata field of an answer, which must follow all other fields. `_loggable` shortens the texts."""
    if not metadata:
        return b""
    entries, typed = [], b""
    for name, value in metadata.items():
        if isinstance(value, int):
            entries.append(_before_number(name) + _double(value))
        elif isinstance(value, TokenRecord):
            typed = _typed(name, value)
        elif name in _TOLD_ALIKE and len(value) <= _LONGEST_TEXT:
            entries.append(_told_alike(name, value))
        else:
            entries.append(_told(name, value))
    if not entries:
        return typed
    inside = _within(_SECOND, _within(_STRUCT, b"".join(entries)))
    return _within(_DYNAMIC_METADATA, _within(_FIRST, _key(_NAMESPACE) + inside)) + typed


def _typed(namespace: str, record: TokenRecord) -> bytes:
    usage = record.usage
    tokens = pb.TokenUsage(
        api_protocol=pb.TokenUsage.OPENAI_RESPONSES,
        model=_loggable(record.model),
        extraction_status=pb.TokenUsage.PARTIAL if record.estimated else pb.TokenUsage.COMPLETE,
    )
    tokens.input_tokens.value = usage.input_tokens
    tokens.output_tokens.value = usage.output_tokens
    tokens.total_tokens.value = usage.total_tokens
    if not record.estimated:
        tokens.input_token_details.cached_tokens.value = usage.cached_tokens
        tokens.input_token_details.cache_creation_tokens.value = usage.cache_write_tokens
        tokens.output_token_details.reasoning_tokens.value = usage.reasoning_tokens
    response = pb.ProcessingResponse()
    typed = response.typed_dynamic_metadata[namespace]
    typed.type_url, typed.value = _TOKEN_USAGE_TYPE, tokens.SerializeToString()
    return response.SerializeToString()


def _told(name: str, value: str) -> bytes:
    return _within(_FIRST, _key(name) + _within(_SECOND, _within(_TEXT, _loggable(value).encode())))


_told_alike: Final = lru_cache(maxsize=1024)(_told)


def _loggable(text: str) -> str:
    """Make a client's text safe for access logs: short, and without line breaks or other control characters."""
    text = text[:_LONGEST_TEXT]
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@lru_cache(maxsize=1024)
def _before_number(name: str) -> bytes:
    """Encode all bytes of a metadata entry that precede its value, a number of eight bytes."""
    key = _key(name)
    return _FIRST + varint(len(key) + 11) + key + b"\x12\x09\x11"


def request_head(headers: Headers, remove: tuple[str, ...], metadata: Metadata | None = None) -> bytes:
    """Encode the answer to the request headers. After this answer Envoy continues with the request and selects the
    route again."""
    common = _within(_SECOND, header_mutation(headers, remove)) + _CLEAR_ROUTE_CACHE
    return _within(_FIRST, _within(_FIRST, common)) + dynamic_metadata(metadata)


def request_body(body: bytes | memoryview, end: bool) -> bytes:
    """Encode one chunk of the new request body."""
    if body:
        return write_part(REQUEST_BODY, body, end)
    response = pb.ProcessingResponse()
    streamed = response.request_body.response.body_mutation.streamed_response
    streamed.body = b""
    streamed.end_of_stream = end
    return response.SerializeToString()


def response_head(headers: Headers, remove: tuple[str, ...]) -> bytes:
    """Encode the answer to the response headers. The body follows in chunks."""
    common = _within(_SECOND, header_mutation(headers, remove))
    return _within(_SECOND, _within(_FIRST, common))


def response_replaced(headers: Headers, remove: tuple[str, ...], body: bytes, metadata: Metadata | None) -> bytes:
    """Encode the answer to the headers of a response without a body. The answer contains the whole new body."""
    response = pb.ProcessingResponse()
    common = response.response_headers.response
    common.status = pb.CommonResponse.CONTINUE_AND_REPLACE
    common.header_mutation.MergeFromString(header_mutation(headers, remove))
    common.body_mutation.body = body
    return response.SerializeToString() + dynamic_metadata(metadata)


def response_body(body: bytes | memoryview, end: bool, metadata: Metadata | None = None) -> bytes:
    """Encode one chunk of the new response body."""
    if body:
        part = write_part(RESPONSE_BODY, body, end)
        return part + dynamic_metadata(metadata) if metadata else part
    response = pb.ProcessingResponse()
    streamed = response.response_body.response.body_mutation.streamed_response
    streamed.body = b""
    streamed.end_of_stream = end
    return response.SerializeToString() + dynamic_metadata(metadata)


def response_trailers() -> bytes:
    """Encode the answer to the response trailers, which stay unchanged."""
    response = pb.ProcessingResponse()
    response.response_trailers.SetInParent()
    return response.SerializeToString()


def immediate(status: int, headers: Headers, body: bytes, details: str, metadata: Metadata | None = None) -> bytes:
    """Encode an immediate response: a complete response to the client. Envoy accepts an immediate response until a
    response head was sent, also during an upload.

    `details` appears in the access log as %RESPONSE_CODE_DETAILS%.
    """
    response = pb.ProcessingResponse()
    answer = response.immediate_response
    answer.status.code = status
    answer.headers.MergeFromString(header_mutation(headers))
    answer.body = body
    answer.details = details
    return response.SerializeToString() + dynamic_metadata(metadata)


def local_head(status: int, headers: Headers, metadata: Metadata | None = None) -> bytes:
    """Encode the head of a streamed local answer. Envoy accepts this head only after the request's end of stream."""
    response = pb.ProcessingResponse()
    head = response.streamed_immediate_response.headers_response
    for name, value in ((":status", str(status)), *_each_once(headers)):
        header = head.headers.headers.add()
        header.key = name
        header.raw_value = value.encode("utf-8", "surrogateescape")
    return response.SerializeToString() + dynamic_metadata(metadata)


def local_body(body: bytes | memoryview, end: bool, metadata: Metadata | None = None) -> bytes:
    """Encode one chunk of a streamed local answer."""
    response = pb.ProcessingResponse()
    part = response.streamed_immediate_response.body_response
    part.body = bytes(body)
    part.end_of_stream = end
    return response.SerializeToString() + dynamic_metadata(metadata)
