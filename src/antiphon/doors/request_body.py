"""For both servers, limits and decompresses the request bodies that a server reads completely.

This module limits the size of a body while the body arrives. This module decodes gzip, deflate and zstd, also when a
client applied several of these codings. Limits on the decoded size stop decompression bombs. `decoded` decodes large
bodies in a thread, so other requests do not wait. The servers read the bytes from the sockets. `http/server.py` handles
streamed uploads, and `extproc/answers.py` handles compressed upstream responses.

Decoding begins when the body is complete. The same limit applies to the compressed body and to the decoded body.

Invariant: for any bytes, the result is the plain body or an `ApiError`: 400 for damaged data, 413 for a too large body,
415 for an unknown coding. A decoder returns at most one byte more than its limit. The limit is `limit` bytes. In
addition, the result may not exceed both `_FREE` bytes and `_RATIO` times the size of the received body.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Final

from antiphon.engine.exchange.budget import Hold
from antiphon.engine.waiting import DECODING
from antiphon.errors import ApiError, InvalidRequest, RequestTooLarge
from antiphon.types.transport import Headers, header_value

_FREE: Final = 16 << 20
_RATIO: Final = 200
_MAX_CODINGS: Final = 3
_MAX_MEMBERS: Final = 1_000
# Decoding a compressed body of this size or more may take longer than a few milliseconds, so a thread does it.
_LARGE: Final = 64 << 10

_GZIP: Final = zlib.MAX_WBITS | 16
_MIN_WINDOW, _MAX_WINDOW = 8 << 20, 128 << 20


def too_large(limit: int, *, decoded: bool = False) -> RequestTooLarge:
    """The error for a body over the limit. `decoded` means that the body exceeds the limit only after decompression."""
    when = " when it is decompressed" if decoded else ""
    return RequestTooLarge(f"The request body is larger than {limit} bytes{when}.", code="request_too_large")


def too_slow(seconds: float) -> ApiError:
    """The error for a body that is incomplete after `seconds`."""
    return ApiError(
        f"The request was not sent completely within {seconds:g} seconds.",
        status=408,
        type="invalid_request_error",
        code="request_timeout",
    )


class WholeBody:
    """Collects a body that a server reads completely. The body may have at most `limit` bytes, before and after
    decompression, and their memory is charged to `hold`.

    The constructor raises an `ApiError` when the headers already show that the body is unacceptable: 413 (too large),
    415 (unknown coding), 429 or 503 (no memory left).
    """

    def __init__(self, headers: Headers, hold: Hold, limit: int) -> None:
        self.codings = content_codings(headers)
        self._hold = hold
        self.limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        length = header_value(headers, "content-length")
        if length is not None and length.isdecimal():
            declared = int(length[:18])
            if declared > limit:
                raise too_large(limit)
            # `check` reserves no memory, because the declared body may never arrive. `check` refuses a body that cannot
            # fit at this moment.
            hold.check(declared)

    def add(self, part: bytes) -> None:
        """Add received bytes. Raises `ApiError` (413, 429, 503)."""
        self._size += len(part)
        if self._size > self.limit:
            raise too_large(self.limit)
        self._hold.add(len(part))
        self._parts.append(part)

    def decoded_now(self) -> bytes | None:
        """Return the decoded body, after all bytes were added. Returns None for a large compressed body, because its
        decoding would delay other requests. In that case the caller must use `decoded`. Raises `ApiError` (400, 413,
        429, 503)."""
        if self.codings and self._size >= _LARGE:
            return None
        body = self.take()
        return self.account(decode_now(self.codings, body, self.limit)) if self.codings else body

    def take(self) -> bytes:
        """Return the received bytes without decoding them, and drop them from this object. The caller may call `take`
        only once."""
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def account(self, plain: bytes) -> bytes:
        """Charge the memory by which the decoded body is larger than the received one. Raises `ApiError` (429, 503)."""
        self._hold.add(max(0, len(plain) - self._size))
        return plain


def content_codings(headers: Headers) -> tuple[str, ...]:
    """The content codings of the body, in the order in which the client applied them. Raises an `ApiError` (415) for
    unsupported codings."""
    if header_value(headers, "content-encoding") is None:
        return ()
    named = (part.strip().lower() for name, value in headers if name == "content-encoding" for part in value.split(","))
    codings = tuple(name for name in named if name not in ("", "identity"))
    for coding in codings:
        if coding not in _DECODERS:
            raise _unsupported(f"content-encoding {coding[:32]!r} is not supported")
    if len(codings) > _MAX_CODINGS:
        raise _unsupported(f"more than {_MAX_CODINGS} content-encodings are not supported")
    return codings


def decode_now(codings: tuple[str, ...], body: bytes, limit: int) -> bytes:
    """Decode the body. Raises `InvalidRequest` for damaged data and `RequestTooLarge` for a too large result."""
    allowed = min(limit, max(_FREE, _RATIO * len(body)))
    for coding in reversed(codings):
        try:
            body = _DECODERS[coding](body, allowed)
        except _Broken as broken:
            raise InvalidRequest(
                f"The request body is not valid {coding}: {broken}. Send the body in the form that "
                "content-encoding names.",
                code="invalid_body",
            ) from None
        if len(body) > allowed:
            if allowed < limit:
                raise RequestTooLarge(
                    f"The decompressed request body is more than {_RATIO} times as large as the compressed body. "
                    "Send the body uncompressed.",
                    code="request_too_large",
                )
            raise too_large(limit, decoded=True)
    return body


class _Broken(Exception):
    """Raised when the bytes of a body are not valid data of the declared coding."""


# Each decoder takes a whole body and returns at most one byte more than the limit.


def _gunzip(body: bytes, limit: int) -> bytes:
    """Decode a gzip body, which may have several members."""
    parts: list[bytes] = []
    size = 0
    for _ in range(_MAX_MEMBERS):
        member, body = _inflate(zlib.decompressobj(_GZIP), body, limit - size + 1)
        parts.append(member)
        size += len(member)
        if size > limit or not body:
            return b"".join(parts)
    raise _Broken("the data has too many members")


def _deflate(body: bytes, limit: int) -> bytes:
    """Decode the zlib form that the standard requires, or the raw form that some clients send."""
    zlib_form = len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    plain, rest = _inflate(zlib.decompressobj(zlib.MAX_WBITS if zlib_form else -zlib.MAX_WBITS), body, limit + 1)
    if rest and len(plain) <= limit:
        raise _Broken("extra bytes follow the end of the data")
    return plain


def _inflate(stream: zlib._Decompress, body: bytes, limit: int) -> tuple[bytes, bytes]:
    """Return at most `limit` decoded bytes, and the bytes after the end of the compressed stream."""
    try:
        plain = stream.decompress(body, limit)
    except zlib.error:
        raise _Broken("the data is damaged") from None
    if not stream.eof and len(plain) < limit:
        raise _Broken("the data ends in the middle of a block")
    return plain, stream.unused_data


def _unzstd(body: bytes, limit: int) -> bytes:
    """Decode a zstd body, which may have several frames."""
    # zstandard is imported at the first use, because few clients send zstd.
    import zstandard

    # The zstd decoder accepts a truncated frame as complete, so this code checks the frames first.
    _check_frames(body)
    window = min(_MAX_WINDOW, max(_MIN_WINDOW, limit))
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << (window - 1).bit_length())
    parts: list[bytes] = []
    try:
        with decoder.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
            left = limit + 1
            while left and (part := reader.read(min(left, 1 << 20))):
                parts.append(part)
                left -= len(part)
    except zstandard.ZstdError:
        raise _Broken("the data is damaged") from None
    return b"".join(parts)


def _check_frames(body: bytes) -> None:
    """Check that the body consists of complete frames only (RFC 8878, section 3.1). Raises `_Broken`."""
    place, end, frames = 0, len(body), 0
    while place < end or not frames:
        frames += 1
        if frames > _MAX_MEMBERS:
            raise _Broken("the data has too many frames")
        magic = body[place : place + 4]
        if magic == b"\x28\xb5\x2f\xfd":
            place = _frame_end(body, place + 4)
        elif len(magic) == 4 and magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50:
            place += 8 + int.from_bytes(body[place + 4 : place + 8], "little")
        else:
            raise _Broken("the data is damaged")
        if place > end:
            raise _Broken("the data ends in the middle of a block")


def _frame_end(body: bytes, place: int) -> int:
    """Return the offset of the end of the frame whose descriptor is at offset `place`. The result lies past the body's
    end when the frame is truncated."""
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
        # A block of type 1 (RLE) consists of one byte that the decoder repeats.
        place += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)
    return place + 4 * (descriptor >> 2 & 1)


_DECODERS: Final[dict[str, Callable[[bytes, int], bytes]]] = {
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


async def decoded(body: WholeBody) -> bytes:
    """Decode the body, after all bytes were added; a thread decodes large bodies. Raises `ApiError` (400, 413, 429,
    503)."""
    plain = body.decoded_now()
    if plain is None:
        plain = body.account(await DECODING.run(decode_now, body.codings, body.take(), body.limit))
    return plain
