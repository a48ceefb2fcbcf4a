"""Undoing the compression of a request's body, for every door.

Lives here: gzip, deflate and zstd, several of them one after another, and the guards against bodies that are made to
grow. Not here: reading a body from a socket (the doors), and what upstreams send compressed (`extproc/content_coding`).

A body is decoded when it is whole: its compressed size has a limit of its own, and no decoder is asked for more than
what is left of the decoded size.

Invariant: whatever the bytes, the outcome is the plain body or an `ApiError` (400 broken, 413 too large, 415 unknown
coding); never more than `most` bytes are made, nor, beyond `_FREE`, more than `_RATIO` times what came.
"""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import Callable

import zstandard

from antiphon.errors import ApiError, InvalidRequest, RequestTooLarge
from antiphon.types.transport import Headers, header_value

__all__ = ["content_codings", "decode_body", "decode_now", "too_large"]

_FREE = 16 << 20
_RATIO = 200
_MOST_CODINGS = 3
_MOST_MEMBERS = 1_000
# What takes longer than a few milliseconds does not hold up the other requests.
_LARGE = 64 << 10

_GZIP = zlib.MAX_WBITS | 16
_LEAST_WINDOW, _MOST_WINDOW = 8 << 20, 128 << 20


def too_large(most: int, *, decoded: bool = False) -> RequestTooLarge:
    """The refusal of a body over the limit."""
    when = " when it is decompressed" if decoded else ""
    return RequestTooLarge(f"The request body is larger than {most} bytes{when}.", code="request_too_large")


def content_codings(headers: Headers) -> tuple[str, ...]:
    """The codings to undo, in the order in which they were applied. Raises a 415 before the body need be read."""
    if header_value(headers, "content-encoding") is None:
        return ()
    named = (part.strip().lower() for name, value in headers if name == "content-encoding" for part in value.split(","))
    codings = tuple(name for name in named if name not in ("", "identity"))
    for coding in codings:
        if coding not in _DECODERS:
            raise _unsupported(f"content-encoding {coding[:32]!r} is not supported")
    if len(codings) > _MOST_CODINGS:
        raise _unsupported(f"more than {_MOST_CODINGS} content-encodings are not supported")
    return codings


async def decode_body(codings: tuple[str, ...], body: bytes, most: int) -> bytes:
    """The plain body. Raises `InvalidRequest` (broken) or `RequestTooLarge`."""
    if not codings:
        return body
    if len(body) < _LARGE:
        return decode_now(codings, body, most)
    return await asyncio.to_thread(decode_now, codings, body, most)


def decode_now(codings: tuple[str, ...], body: bytes, most: int) -> bytes:
    """`decode_body` without yielding to the event loop."""
    allowed = min(most, max(_FREE, _RATIO * len(body)))
    for coding in reversed(codings):
        try:
            body = _DECODERS[coding](body, allowed)
        except _Broken as broken:
            raise InvalidRequest(
                f"The request body is not valid {coding}: {broken}. Send it as its content-encoding says.",
                code="invalid_body",
            ) from None
        if len(body) > allowed:
            if allowed < most:
                raise RequestTooLarge(
                    "The request body grows out of all proportion when it is decompressed. Send it uncompressed.",
                    code="request_too_large",
                )
            raise too_large(most, decoded=True)
    return body


class _Broken(Exception):
    """The bytes are not what their coding says."""


# Each decoder takes a whole body and returns at most one byte more than it may.


def _gunzip(body: bytes, most: int) -> bytes:
    """One or several gzip members."""
    parts: list[bytes] = []
    size = 0
    for _ in range(_MOST_MEMBERS):
        member, body = _inflate(zlib.decompressobj(_GZIP), body, most - size + 1)
        parts.append(member)
        size += len(member)
        if size > most or not body:
            return b"".join(parts)
    raise _Broken("it has too many members")


def _deflate(body: bytes, most: int) -> bytes:
    """The zlib form that the standard means, or the bare one that some clients send."""
    zlib_form = len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    plain, rest = _inflate(zlib.decompressobj(zlib.MAX_WBITS if zlib_form else -zlib.MAX_WBITS), body, most + 1)
    if rest and len(plain) <= most:
        raise _Broken("something follows its end")
    return plain


def _inflate(stream: zlib._Decompress, body: bytes, most: int) -> tuple[bytes, bytes]:
    """At most `most` plain bytes, and what follows the stream's end."""
    try:
        plain = stream.decompress(body, most)
    except zlib.error:
        raise _Broken("it is damaged") from None
    if not stream.eof and len(plain) < most:
        raise _Broken("it stops in the middle")
    return plain, stream.unused_data


def _unzstd(body: bytes, most: int) -> bytes:
    """One or several zstd frames."""
    # The decoder takes a frame that stops in the middle for whole, so the frames are looked at first.
    _check_frames(body)
    window = min(_MOST_WINDOW, max(_LEAST_WINDOW, most))
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << (window - 1).bit_length())
    parts: list[bytes] = []
    try:
        with decoder.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
            left = most + 1
            while left and (part := reader.read(min(left, 1 << 20))):
                parts.append(part)
                left -= len(part)
    except zstandard.ZstdError:
        raise _Broken("it is damaged") from None
    return b"".join(parts)


def _check_frames(body: bytes) -> None:
    """That the body is whole frames and nothing else (RFC 8878, section 3.1); raises `_Broken`."""
    place, end, frames = 0, len(body), 0
    while place < end or not frames:
        frames += 1
        if frames > _MOST_MEMBERS:
            raise _Broken("it has too many frames")
        magic = body[place : place + 4]
        if magic == b"\x28\xb5\x2f\xfd":
            place = _frame_end(body, place + 4)
        elif len(magic) == 4 and magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50:
            place += 8 + int.from_bytes(body[place + 4 : place + 8], "little")
        else:
            raise _Broken("it is damaged")
        if place > end:
            raise _Broken("it stops in the middle")


def _frame_end(body: bytes, place: int) -> int:
    """Where the frame ends whose descriptor is at `place`; past the body's end when it is cut."""
    end = len(body)
    if place >= end:
        return end + 1
    descriptor = body[place]
    single = descriptor >> 5 & 1
    content_size = (single, 2, 4, 8)[descriptor >> 6]
    place += 1 + (1 - single) + (0, 1, 2, 4)[descriptor & 3] + content_size
    last = False
    while not last:
        if place + 3 > end:
            return end + 1
        header = int.from_bytes(body[place : place + 3], "little")
        last = bool(header & 1)
        # A block of kind 1 is one byte, repeated.
        place += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)
    return place + 4 * (descriptor >> 2 & 1)


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _deflate,
    "zstd": _unzstd,
}


def _unsupported(problem: str) -> ApiError:
    return ApiError(
        f"{problem[:1].upper()}{problem[1:]} for request bodies. Send the body as it is, or compressed with gzip, "
        "deflate or zstd.",
        status=415,
        type="invalid_request_error",
        code="unsupported_content_encoding",
        headers=(("accept-encoding", "gzip, deflate, zstd"),),
    )
