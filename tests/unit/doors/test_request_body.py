"""Compressed request bodies: every coding, every way to be broken, every way to grow."""

from __future__ import annotations

import gzip
import os
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.doors.request_body import WholeBody, content_codings, decode_now, decoded
from antiphon.engine.exchange.budget import Budget, Hold
from antiphon.errors import ApiError, AtCapacity, InvalidRequest, RequestTooLarge
from tests.support.compression import zstd_streamed
from tests.support.effort import examples

MOST = 64 << 20
BODY = b'{"model":"m","input":"' + b"hello world " * 100 + b'"}'


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def zstd(data: bytes, **options: int) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)  # type: ignore[arg-type]


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "two gzip members": ("gzip", lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:])),
    "deflate": ("deflate", zlib.compress),
    "bare deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstd),
    "zstd streamed": ("zstd", zstd_streamed),
    "zstd best": ("zstd", lambda data: zstd(data, level=22)),
    "two zstd frames": ("zstd", lambda data: zstd(data[:7]) + zstd_streamed(data[7:])),
    "zstd after a skippable frame": ("zstd", lambda data: b"\x53\x2a\x4d\x18\x03\0\0\0abc" + zstd(data)),
}


@pytest.mark.parametrize("data", [b"", b"x", BODY, BODY * 500, os.urandom(300_000)], ids=len)
@pytest.mark.parametrize("name", ENCODERS)
async def test_what_was_encoded_comes_back(name: str, data: bytes) -> None:
    coding, encode = ENCODERS[name]
    body = WholeBody((("content-encoding", coding),), _hold(), MOST)
    body.add(encode(data))
    assert await decoded(body) == data


async def test_a_plain_body_is_the_same_object() -> None:
    body = WholeBody((), _hold(), MOST)
    body.add(BODY)
    assert await decoded(body) is BODY


@pytest.mark.parametrize(
    ("value", "codings"),
    [
        ("", ()),
        ("identity", ()),
        ("gzip", ("gzip",)),
        (" GZip ", ("gzip",)),
        ("deflate, gzip", ("deflate", "gzip")),
        ("identity,,zstd", ("zstd",)),
    ],
)
def test_the_header_names_codings_in_any_spelling(value: str, codings: tuple[str, ...]) -> None:
    assert content_codings((("content-type", "application/json"), ("content-encoding", value))) == codings


def test_three_codings_are_taken_and_a_fourth_is_a_415() -> None:
    assert len(content_codings((("content-encoding", "gzip, gzip, gzip"),))) == 3
    with pytest.raises(ApiError) as caught:
        content_codings((("content-encoding", "gzip, gzip, gzip, gzip"),))
    assert caught.value.status == 415 and "More than 3" in caught.value.message


def test_no_header_is_no_coding_and_two_headers_are_one_list() -> None:
    assert content_codings(()) == ()
    assert content_codings((("content-encoding", "gzip"), ("content-encoding", "zstd"))) == ("gzip", "zstd")


@pytest.mark.parametrize("value", ["br", "compress", "gzip, br", "gzip;q=1", "x" * 10_000, "gzip,gzip,gzip,gzip"])
def test_an_unknown_coding_is_a_415_that_says_what_is_supported(value: str) -> None:
    with pytest.raises(ApiError) as caught:
        content_codings((("content-encoding", value),))
    error = caught.value
    assert (error.status, error.type, error.code) == (
        415,
        "invalid_request_error",
        "unsupported_content_encoding",
    )
    assert "gzip, deflate or zstd" in error.message and len(error.message) < 300
    assert ("accept-encoding", "gzip, deflate, zstd") in error.headers


def test_several_codings_are_undone_in_reverse_order() -> None:
    assert decode_now(("gzip", "zstd"), zstd(gzip.compress(BODY)), MOST) == BODY
    with pytest.raises(InvalidRequest):
        decode_now(("zstd", "gzip"), zstd(gzip.compress(BODY)), MOST)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_body_that_stops_in_the_middle_is_a_400(name: str) -> None:
    coding, encode = ENCODERS[name]
    whole = encode(BODY)
    accepted = []
    for size in range(len(whole)):
        try:
            accepted.append(decode_now((coding,), whole[:size], MOST))
        except InvalidRequest as error:
            assert (error.status, error.code) == (400, "invalid_body")
    # What is left when a whole member or frame was cut off is whole, and shorter.
    assert all(BODY.startswith(body) and body != BODY for body in accepted)
    assert len(accepted) <= 1


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("more", [b"\0", b"{}", b"garbage that is longer than a header"])
def test_a_body_with_something_behind_it_is_a_400(name: str, more: bytes) -> None:
    coding, encode = ENCODERS[name]
    with pytest.raises(InvalidRequest):
        decode_now((coding,), encode(BODY) + more, MOST)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("body", [b"", b"{}", BODY, b"\x28\xb5\x2f\xfd", b"\x1f\x8b", b"\x78\x9c", b"\x50\x2a\x4d\x18"])
def test_what_is_not_compressed_is_a_400_that_names_the_coding(coding: str, body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_now((coding,), body, MOST)
    assert coding in caught.value.message


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
@given(data=st.binary(max_size=400))
def test_any_bytes_are_decoded_or_refused(coding: str, data: bytes) -> None:
    try:
        decode_now((coding,), data, 1 << 20)
    except ApiError as error:
        assert error.status in (400, 413)


@pytest.mark.parametrize("name", ENCODERS)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(max_examples=examples(60))
def test_any_damage_is_decoded_or_refused(name: str, place: int, value: int) -> None:
    coding, encode = ENCODERS[name]
    body = bytearray(encode(BODY))
    body[place % len(body)] = value
    try:
        decode_now((coding,), bytes(body), 1 << 20)
    except ApiError as error:
        assert error.status in (400, 413)


# Growing


@pytest.mark.parametrize("name", ENCODERS)
def test_the_decoded_size_is_limited_to_the_byte(name: str) -> None:
    coding, encode = ENCODERS[name]
    assert decode_now((coding,), encode(BODY), len(BODY)) == BODY
    with pytest.raises(RequestTooLarge) as caught:
        decode_now((coding,), encode(BODY), len(BODY) - 1)
    assert caught.value.code == "request_too_large" and "decompressed" in caught.value.message


BOMB = 100 << 20
LITTLE = 8 << 20


@pytest.mark.parametrize(
    ("coding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstd), ("zstd", zstd_streamed)]
)
def test_a_bomb_is_refused_after_what_it_may_make(coding: str, encode: Callable[[bytes], bytes]) -> None:
    bomb = encode(bytes(BOMB))
    assert len(bomb) < BOMB // 500
    tracemalloc.start()
    try:
        with pytest.raises(RequestTooLarge):
            decode_now((coding,), bomb, LITTLE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Pieces and what they are joined to are held together.
    assert peak <= 2 * LITTLE + (1 << 20)


def test_a_body_that_grows_without_measure_is_refused_only_when_it_is_large() -> None:
    assert decode_now(("gzip",), gzip.compress(bytes(16 << 20)), MOST) == bytes(16 << 20)
    with pytest.raises(RequestTooLarge, match="200 times as large as the compressed body"):
        decode_now(("gzip",), gzip.compress(bytes(17 << 20)), MOST)
    # A long conversation with a repeated prompt does not come near it.
    text = os.urandom(120_000).hex().encode() + b"You are a helpful assistant. " * 700_000
    assert decode_now(("zstd",), zstd(text), MOST) == text


def test_a_frame_may_ask_for_no_more_memory_than_a_body_may_have() -> None:
    options = zstandard.ZstdCompressionParameters(window_log=24, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=options).compressobj()
    body = stream.compress(BODY) + stream.flush()
    assert decode_now(("zstd",), body, 16 << 20) == BODY
    with pytest.raises(InvalidRequest, match="damaged"):
        decode_now(("zstd",), body, 8 << 20)


def test_a_bomb_in_a_bomb_is_refused_at_the_first() -> None:
    inner = gzip.compress(gzip.compress(bytes(BOMB)))
    with pytest.raises(RequestTooLarge):
        decode_now(("gzip", "gzip"), inner, MOST)


@pytest.mark.parametrize(
    "body",
    [gzip.compress(b"") * 2_000, zstd(b"") * 2_000, b"\x50\x2a\x4d\x18\0\0\0\0" * 2_000],
    ids=["gzip", "zstd", "skip"],
)
def test_thousands_of_empty_members_are_refused(body: bytes) -> None:
    coding = "gzip" if body[:1] == b"\x1f" else "zstd"
    with pytest.raises(InvalidRequest, match="too many"):
        decode_now((coding,), body, MOST)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_thousand_members_are_taken_and_one_more_is_not(coding: str) -> None:
    member = gzip.compress(b"x", 1) if coding == "gzip" else zstd(b"x")
    assert decode_now((coding,), member * 1_000, MOST) == b"x" * 1_000
    with pytest.raises(InvalidRequest, match="too many"):
        decode_now((coding,), member * 1_001, MOST)


def test_a_zstd_frame_with_a_huge_window_is_refused() -> None:
    frame = bytearray(zstd_streamed(BODY))
    frame[5] = (41 - 10) << 3
    with pytest.raises(InvalidRequest):
        decode_now(("zstd",), bytes(frame), MOST)


def _hold(limit: int = 1 << 20) -> Hold:
    return Budget(limit, "limits.bytes_in_flight").hold("")


@pytest.mark.parametrize("declared", [None, "10", "3", "x", "-1", "\u00b2"])
async def test_a_body_may_be_as_large_as_the_limit_whatever_was_declared(declared: str | None) -> None:
    hold = _hold()
    body = WholeBody((("content-length", declared),) if declared is not None else (), hold, 10)
    assert hold.size == 0, "no place is kept for what may never come"
    for part in (b"12345", b"", b"6789", b"0"):
        body.add(part)
    assert hold.size == 10
    with pytest.raises(RequestTooLarge):
        body.add(b"x")
    assert await decoded(body) == b"1234567890" and hold.size == 10
    assert await decoded(body) == b"", "it is given once"


@pytest.mark.parametrize("declared", ["11", "1" * 18, "1" * 4000])
def test_what_is_declared_too_large_is_not_read(declared: str) -> None:
    with pytest.raises(RequestTooLarge):
        WholeBody((("content-length", declared),), _hold(), 10)


def test_what_cannot_fit_now_is_not_read() -> None:
    budget = Budget(20, "limits.bytes_in_flight")
    with budget.hold("") as other, budget.hold("") as hold:
        other.add(11)
        WholeBody((("content-length", "9"),), hold, 100)
        with pytest.raises(AtCapacity):
            WholeBody((("content-length", "10"),), hold, 100)


async def test_what_a_compressed_body_is_beyond_its_bytes_is_held_as_well() -> None:
    for data, held in ((BODY, len(BODY)), (b"x", len(gzip.compress(b"x")))):
        hold = _hold()
        body = WholeBody((("content-encoding", "gzip"),), hold, MOST)
        body.add(gzip.compress(data))
        assert await decoded(body) == data and hold.size == held


@pytest.mark.parametrize("name", ["gzip", "two gzip members", "deflate", "bare deflate", "zstd", "two zstd frames"])
def test_a_body_may_be_as_large_as_the_limit_when_it_is_plain(name: str) -> None:
    coding, encode = ENCODERS[name]
    coded = encode(BODY)
    assert decode_now((coding,), coded, len(BODY)) == BODY
    with pytest.raises(RequestTooLarge):
        decode_now((coding,), coded, len(BODY) - 1)


@pytest.mark.parametrize(
    ("name", "whole"),
    [("zstd", 0), ("zstd streamed", 0), ("two zstd frames", len(zstd(BODY[:7]))), ("zstd after a skippable frame", 11)],
)
def test_a_frame_that_is_cut_anywhere_is_not_valid(name: str, whole: int) -> None:
    """`whole`: where the first of two frames ends."""
    coding, encode = ENCODERS[name]
    coded = encode(BODY)
    for at in range(1, len(coded)):
        if at != whole:
            with pytest.raises(InvalidRequest, match="not valid zstd: the data "):
                decode_now((coding,), coded[:at], MOST)
