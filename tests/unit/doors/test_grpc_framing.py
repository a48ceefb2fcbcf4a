"""Messages on their way through gRPC: cut anywhere, as large as may be, and not a byte larger."""

from __future__ import annotations

import grpc
import pytest

from antiphon.doors.extproc.http2_call import MessageSplitter, status_trailers, timeout_seconds, with_prefix
from antiphon.doors.extproc.transport import CallFailed, GrpcStatus


@pytest.mark.parametrize("step", [1, 4, 5, 6, 1000])
def test_messages_come_out_whole_and_in_order_however_they_are_cut(step: int) -> None:
    messages = [b"", b"a", b"x" * 20, b"", b"y" * 19]
    data, splitter, made = b"".join(map(with_prefix, messages)), MessageSplitter(20), list[bytes]()
    for at in range(0, len(data), step):
        made += splitter.feed(data[at : at + step])
    assert made == messages and splitter.held == 0


@pytest.mark.parametrize("cut", [None, 5, 7])
@pytest.mark.parametrize(("size", "fits"), [(19, True), (20, True), (21, False)])
def test_a_message_may_be_as_large_as_the_limit(size: int, fits: bool, cut: int | None) -> None:
    splitter, data = MessageSplitter(20), with_prefix(bytes(size))
    if fits:
        assert [*splitter.feed(data[:cut]), *(splitter.feed(data[cut:]) if cut else [])] == [bytes(size)]
        return
    # Refused as soon as its length is known.
    with pytest.raises(CallFailed) as refused:
        splitter.feed(data[:cut])
    assert refused.value.status is GrpcStatus.RESOURCE_EXHAUSTED


def test_what_is_not_whole_is_held() -> None:
    splitter, data = MessageSplitter(20), with_prefix(b"abc")
    for size in range(1, len(data)):
        assert splitter.feed(data[size - 1 : size]) == [] and splitter.held == size
    assert splitter.feed(data[-1:] + data[:2]) == [b"abc"] and splitter.held == 2


@pytest.mark.parametrize("cut", [None, 6])
def test_a_compressed_message_is_refused(cut: int | None) -> None:
    with pytest.raises(CallFailed) as refused:
        MessageSplitter(20).feed((b"\x01" + with_prefix(b"abc")[1:])[:cut])
    assert refused.value.status is GrpcStatus.UNIMPLEMENTED


def test_the_last_words_are_escaped() -> None:
    assert status_trailers(GrpcStatus.OK) == [(b"grpc-status", b"0")]
    assert status_trailers(GrpcStatus.INTERNAL, "100% \u00e9\n") == [
        (b"grpc-status", b"13"),
        (b"grpc-message", b"100%25 %C3%A9%0A"),
    ]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1S", 1.0),
        (b"99999999S", 99_999_999.0),
        (b"2M", 120.0),
        (b"1H", 3600.0),
        (b"5m", 0.005),
        (b"S", None),
        (b"", None),
        (b"123456789S", None),
        (b"1x", None),
        (b"1.5S", None),
    ],
)
def test_a_timeout_has_at_most_eight_digits_and_a_unit(value: bytes, seconds: float | None) -> None:
    assert timeout_seconds(value) == (pytest.approx(seconds) if seconds is not None else None)


def test_a_length_has_four_bytes() -> None:
    """What comes is not whole although the lower bytes of the length say so."""
    splitter = MessageSplitter(1 << 25)
    assert splitter.feed(b"\0" + (1 << 24 | 3).to_bytes(4, "big") + b"abc") == [] and splitter.held == 8
    large = bytes(1 << 24) + b"abc"
    assert MessageSplitter(1 << 25).feed(with_prefix(large)) == [large]


def test_statuses_have_grpcs_numbers() -> None:
    for status in GrpcStatus:
        assert status.value == grpc.StatusCode[status.name].value[0]
