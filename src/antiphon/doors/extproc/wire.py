"""ext_proc messages as plain values; the only file that sees the generated message classes of the API.

Lives here: decoding what Envoy sends and encoding what it is answered. Not here: which answer is legal when
(`stream.py`).

Invariants: header values travel in `raw_value` (Envoy shows values in `value` as empty); header mutations overwrite;
header lists keep duplicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.types.transport import Headers

__all__ = [
    "Kind",
    "Received",
    "decode",
    "immediate",
    "local_body",
    "local_head",
    "request_body",
    "request_head",
    "request_trailers",
    "response_body",
    "response_head",
    "response_replaced",
    "response_trailers",
]

_OVERWRITE = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_FULL_DUPLEX = pb.ProcessingMode.FULL_DUPLEX_STREAMED


class Kind(Enum):
    """What a message from Envoy carries."""

    REQUEST_HEADERS = "request_headers"
    REQUEST_BODY = "request_body"
    REQUEST_TRAILERS = "request_trailers"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    RESPONSE_TRAILERS = "response_trailers"
    OTHER = "other"


_KINDS = {kind.value: kind for kind in Kind}


@dataclass(slots=True)
class Received:
    """One message from Envoy.

    `headers` for the two header kinds, `body` for the two body kinds; `end` is `end_of_stream`. `duplex` is False when
    this message (the stream's first) names body modes other than FULL_DUPLEX_STREAMED, None when it names none.
    """

    kind: Kind
    headers: Headers = ()
    body: bytes = b""
    end: bool = False
    duplex: bool | None = None


def decode(message: bytes) -> Received:
    """Decode one ProcessingRequest. Raises ValueError (protobuf's DecodeError) for bytes that are none."""
    try:
        request = pb.ProcessingRequest.FromString(message)
    except Exception as error:
        raise ValueError("not a ProcessingRequest") from error
    name = request.WhichOneof("request")
    duplex = None
    if request.HasField("protocol_config"):
        config = request.protocol_config
        duplex = config.request_body_mode == _FULL_DUPLEX and config.response_body_mode == _FULL_DUPLEX
    if name == "response_body":
        return Received(Kind.RESPONSE_BODY, body=request.response_body.body, end=request.response_body.end_of_stream)
    if name == "request_body":
        return Received(Kind.REQUEST_BODY, body=request.request_body.body, end=request.request_body.end_of_stream)
    if name == "request_headers":
        headers = request.request_headers
        return Received(Kind.REQUEST_HEADERS, _headers(headers.headers), end=headers.end_of_stream, duplex=duplex)
    if name == "response_headers":
        headers = request.response_headers
        return Received(Kind.RESPONSE_HEADERS, _headers(headers.headers), end=headers.end_of_stream, duplex=duplex)
    return Received(_KINDS.get(name or "", Kind.OTHER), duplex=duplex)


def _headers(headers: pb.HeaderMap) -> Headers:
    return tuple(
        (header.key.lower(), header.raw_value.decode("latin-1") if header.raw_value else header.value)
        for header in headers.headers
    )


def _set(mutation: pb.HeaderMutation, headers: Headers) -> None:
    for name, value in headers:
        option = mutation.set_headers.add()
        option.header.key = name
        option.header.raw_value = value.encode("latin-1", "replace")
        option.append_action = _OVERWRITE


def _metadata(response: pb.ProcessingResponse, metadata: dict[str, str | int] | None) -> None:
    """Dynamic metadata under the namespace `antiphon`."""
    if metadata:
        fields = response.dynamic_metadata.fields["antiphon"].struct_value.fields
        for name, value in metadata.items():
            if isinstance(value, int):
                fields[name].number_value = value
            else:
                fields[name].string_value = value


def request_head(set_headers: Headers, remove: tuple[str, ...], metadata: dict[str, str | int] | None = None) -> bytes:
    """Answer the request headers: Envoy goes on with the request; the route is chosen anew."""
    response = pb.ProcessingResponse()
    common = response.request_headers.response
    _set(common.header_mutation, set_headers)
    common.header_mutation.remove_headers.extend(remove)
    common.clear_route_cache = True
    _metadata(response, metadata)
    return response.SerializeToString()


def request_body(body: bytes, end: bool) -> bytes:
    """A part of the new request body."""
    response = pb.ProcessingResponse()
    streamed = response.request_body.response.body_mutation.streamed_response
    streamed.body = body
    streamed.end_of_stream = end
    return response.SerializeToString()


def request_trailers() -> bytes:
    """Answer the request trailers: none are changed."""
    response = pb.ProcessingResponse()
    response.request_trailers.SetInParent()
    return response.SerializeToString()


def response_head(set_headers: Headers, remove: tuple[str, ...]) -> bytes:
    """Answer the response headers; the body follows in parts."""
    response = pb.ProcessingResponse()
    mutation = response.response_headers.response.header_mutation
    _set(mutation, set_headers)
    mutation.remove_headers.extend(remove)
    return response.SerializeToString()


def response_replaced(
    set_headers: Headers, remove: tuple[str, ...], body: bytes, metadata: dict[str, str | int] | None
) -> bytes:
    """Answer the headers of a response that has no body with a whole body."""
    response = pb.ProcessingResponse()
    common = response.response_headers.response
    common.status = pb.CommonResponse.CONTINUE_AND_REPLACE
    _set(common.header_mutation, set_headers)
    common.header_mutation.remove_headers.extend(remove)
    common.body_mutation.body = body
    _metadata(response, metadata)
    return response.SerializeToString()


def response_body(body: bytes, end: bool, metadata: dict[str, str | int] | None = None) -> bytes:
    """A part of the new response body."""
    response = pb.ProcessingResponse()
    streamed = response.response_body.response.body_mutation.streamed_response
    streamed.body = body
    streamed.end_of_stream = end
    _metadata(response, metadata)
    return response.SerializeToString()


def response_trailers() -> bytes:
    """Answer the response trailers: none are changed."""
    response = pb.ProcessingResponse()
    response.response_trailers.SetInParent()
    return response.SerializeToString()


def immediate(status: int, headers: Headers, body: bytes, details: str) -> bytes:
    """Answer the client here and now; legal before any other answer, also in the middle of an upload."""
    response = pb.ProcessingResponse()
    answer = response.immediate_response
    answer.status.code = status
    _set(answer.headers, headers)
    answer.body = body
    answer.details = details
    return response.SerializeToString()


def local_head(status: int, headers: Headers, metadata: dict[str, str | int] | None = None) -> bytes:
    """Begin a streamed local answer; legal only after the request's end of stream."""
    response = pb.ProcessingResponse()
    head = response.streamed_immediate_response.headers_response
    for name, value in ((":status", str(status)), *headers):
        header = head.headers.headers.add()
        header.key = name
        header.raw_value = value.encode("latin-1", "replace")
    _metadata(response, metadata)
    return response.SerializeToString()


def local_body(body: bytes, end: bool, metadata: dict[str, str | int] | None = None) -> bytes:
    """A part of a streamed local answer."""
    response = pb.ProcessingResponse()
    part = response.streamed_immediate_response.body_response
    part.body = body
    part.end_of_stream = end
    _metadata(response, metadata)
    return response.SerializeToString()
