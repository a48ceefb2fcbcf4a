"""Heads read by hand are what the generated classes read; no credential outlives its request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.doors.extproc import fast_codec, wire
from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.received import MessageKind, Received

NAMES = st.sampled_from((":method", ":path", "accept", "x-envoy-a", "X-B")) | st.text(max_size=140)
RAW = st.binary(max_size=400) | st.text(max_size=40).map(str.encode)
# A header has its value in one of two places, or in both, or none.
ENTRIES = st.lists(st.tuples(NAMES, RAW, st.text(max_size=3)), max_size=12)
_DUPLEX = pb.ProcessingMode.FULL_DUPLEX_STREAMED


def _message(kind: MessageKind, entries: list[tuple[str, bytes, str]], *, end: bool = False) -> bytes:
    request = pb.ProcessingRequest()
    head = request.request_headers if kind is MessageKind.REQUEST_HEADERS else request.response_headers
    head.end_of_stream = end
    head.headers.SetInParent()
    for name, raw, value in entries:
        head.headers.headers.add(key=name, raw_value=raw, value=value)
    return request.SerializeToString()


def _behind(*, modes: bool = False, observing: bool = False, attribute: str = "") -> bytes:
    request = pb.ProcessingRequest(observability_mode=observing)
    if modes:
        request.protocol_config.request_body_mode = request.protocol_config.response_body_mode = _DUPLEX
    if attribute:
        request.attributes["a"].fields[attribute].string_value = "x"
    return request.SerializeToString()


TAILS = st.sampled_from(
    (b"", b"\x42\x00", _behind(modes=True) + b"\x42\x00", _behind(modes=True, observing=True), _behind(attribute="b"))
) | st.binary(max_size=6)


def _outcome(read: object, message: bytes) -> Received | str:
    try:
        return read(message)  # type: ignore[operator, no-any-return]
    except ValueError as error:
        return str(error)


def _is_read_alike(message: bytes) -> bool:
    expected = _outcome(wire.decode_by_classes, message)
    # The second time some of it is kept.
    return _outcome(wire.decode, message) == expected == _outcome(wire.decode, message)


@given(st.sampled_from((MessageKind.REQUEST_HEADERS, MessageKind.RESPONSE_HEADERS)), ENTRIES, st.booleans(), TAILS)
def test_any_head(kind: MessageKind, entries: list[tuple[str, bytes, str]], end: bool, behind: bytes) -> None:
    assert _is_read_alike(_message(kind, entries, end=end) + behind)


@given(st.data())
def test_damaged_heads(data: st.DataObject) -> None:
    whole = _message(MessageKind.REQUEST_HEADERS, data.draw(ENTRIES), end=True) + _behind(modes=True)
    at = data.draw(st.integers(0, len(whole)))
    damage = data.draw(st.binary(max_size=2))
    assert _is_read_alike(whole[:at] + damage + whole[at + data.draw(st.integers(0, 2)) :])


def test_a_head_that_ends_before_its_length() -> None:
    # Three lengths that say one byte more than there is, around a header that is whole.
    assert _is_read_alike(b"\x12\x09\x0a\x07\x0a\x05\x0a\x03abc")
    message = b"\x12\x0a\x0a\x08\x0a\x06\x0a\x03abc"
    assert _is_read_alike(message)
    with pytest.raises(ValueError, match="not a ProcessingRequest"):
        wire.decode(message)


@pytest.mark.parametrize("size", [0, 1, 99, *range(108, 132), 16_370, 16_384, 70_000])
def test_every_length_of_a_value(size: int) -> None:
    assert _is_read_alike(_message(MessageKind.RESPONSE_HEADERS, [("server", b"v" * size, "")]))


def test_a_usual_head_asks_no_class() -> None:
    entries = [(":path", b"/v1/responses", ""), ("authorization", b"Bearer s", ""), ("x-empty", b"", "")]
    message = _message(MessageKind.REQUEST_HEADERS, entries) + b"\x42\x00" + _behind(modes=True)
    expected = wire.decode(message)
    found = fast_codec.read_head(message)
    assert found is not None and found[0] == expected.headers and found[2] in wire.KEPT_SETTINGS
    assert expected.headers == ((":path", "/v1/responses"), ("authorization", "Bearer s"), ("x-empty", ""))
    assert expected.modes == ("FULL_DUPLEX_STREAMED", "FULL_DUPLEX_STREAMED")


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-envoy-original-path",
        "api-key",
        "x-api-key",
        "x-goog-api-key",
        "x-antiphon-secret",
        "x-auth-token",
        "x-amz-security-token",
        "x-request-id",
        "anything",
    ],
)
def test_no_credential_is_kept(name: str) -> None:
    message = _message(MessageKind.REQUEST_HEADERS, [(name, b"s3cret", ""), (":path", b"/v1/x?key=s3cret", "")])
    assert (name, "s3cret") in wire.decode(message).headers
    assert "s3cret" not in str((fast_codec.KEPT_HEADERS, wire.KEPT_SETTINGS))


def test_what_is_kept_has_a_bound() -> None:
    for number in range(3000):
        wire.decode(_message(MessageKind.REQUEST_HEADERS, [("user-agent", b"%d" % number, "")]))
        wire.decode(
            _message(MessageKind.REQUEST_HEADERS, []) + b"\x5a\x03\x08" + bytes((number & 127 | 128, number >> 7))
        )
        assert len(fast_codec.KEPT_HEADERS) <= 1024
    assert len(wire.KEPT_SETTINGS) <= 64
    wire.decode(_message(MessageKind.REQUEST_HEADERS, [("user-agent", b"long" * 64, "")]))
    assert "longlong" not in str(fast_codec.KEPT_HEADERS)


def test_metadata_of_other_filters_is_not_kept() -> None:
    message = _message(MessageKind.REQUEST_HEADERS, [(":method", b"GET", "")]) + _behind(modes=True, attribute="s3cret")
    assert wire.decode(message).modes is not None
    assert b"s3cret" not in b"".join(wire.KEPT_SETTINGS)
