"""Body parts by hand are what the generated classes make of them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from antiphon.doors.extproc import wire
from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.fast_codec import REQUEST_BODY, RESPONSE_BODY, read_part, write_part
from antiphon.doors.extproc.received import MessageKind

SIZES = (0, 1, 2, 100, 116, 117, 118, 119, 120, 121, 122, 125, 126, 127, 128, 129, 231, 16_370, 16_383, 16_384, 70_000)
LARGE_SIZES = (300_000, 2_097_140, 2_097_151, 2_097_152)


def _asked(kind: int, body: bytes, end: bool) -> pb.ProcessingRequest:
    request = pb.ProcessingRequest()
    part = request.request_body if kind == REQUEST_BODY else request.response_body
    part.SetInParent()
    part.body, part.end_of_stream = body, end
    return request


def _answered(kind: int, body: bytes, end: bool) -> bytes:
    response = pb.ProcessingResponse()
    answer = response.request_body if kind == REQUEST_BODY else response.response_body
    answer.response.body_mutation.streamed_response.body = body
    answer.response.body_mutation.streamed_response.end_of_stream = end
    return response.SerializeToString()


@pytest.mark.parametrize("kind", [REQUEST_BODY, RESPONSE_BODY])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("size", SIZES + LARGE_SIZES)
def test_every_size_is_read_and_written_alike(kind: int, end: bool, size: int) -> None:
    body = (bytes(range(251)) * (size // 251 + 1))[:size]
    asked = _asked(kind, body, end).SerializeToString()
    for tail in (b"", b"\x42\x00"):
        received = wire.decode(asked + tail)
        assert (received.body, received.end) == (body, end)
        assert received.kind is (MessageKind.REQUEST_BODY if kind == REQUEST_BODY else MessageKind.RESPONSE_BODY)
        if (size > 0 or end) and size <= 2_097_140:
            assert read_part(asked + tail) == (body, end)
    if size:
        assert write_part(kind, body, end) == write_part(kind, memoryview(body), end) == _answered(kind, body, end)
    write = wire.request_body if kind == REQUEST_BODY else wire.response_body
    assert write(body, end) == _answered(kind, body, end)


def test_what_else_a_body_message_holds_is_left_to_the_generated_class() -> None:
    request = _asked(RESPONSE_BODY, b"some bytes", True)
    request.observability_mode = True
    assert read_part(request.SerializeToString()) is None
    assert wire.decode(request.SerializeToString()).body == b"some bytes"


@given(st.sampled_from((REQUEST_BODY, RESPONSE_BODY)), st.binary(max_size=40))
@example(REQUEST_BODY, b"")
@example(RESPONSE_BODY, b"\x80")
@example(RESPONSE_BODY, b"\x05\x0a\x7fabc")
@example(RESPONSE_BODY, b"\x05\x0a\x03abc\x42\x00")
@example(RESPONSE_BODY, b"\x04\x0a\x03abc")
@example(RESPONSE_BODY, b"\x87\x80\x00\x0a\x83\x80\x00abc")
@example(RESPONSE_BODY, b"\x88\x80\x80\x00\x0a\x83\x80\x00abc")
@example(RESPONSE_BODY, b"\x85\x80")
@example(RESPONSE_BODY, b"\x00\x10\x01")
@example(REQUEST_BODY, b"\x02\x10\x01\x42\x00")
def test_any_bytes_are_read_as_the_generated_class_reads_them_or_not_at_all(kind: int, rest: bytes) -> None:
    message = bytes((kind,)) + rest
    found = read_part(message)
    if found is not None:
        request = pb.ProcessingRequest.FromString(message)
        part = request.request_body if kind == REQUEST_BODY else request.response_body
        assert found == (part.body, part.end_of_stream)
