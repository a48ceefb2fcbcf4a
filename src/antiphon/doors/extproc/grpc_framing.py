"""Encodes and decodes the gRPC framing over HTTP/2: message prefixes, status trailers and timeouts.

This module has pure functions and the message splitter. `transport_http2.py` handles HTTP/2 and sockets.

Source: gRPC's PROTOCOL-HTTP2 document. Invariant: `MessageSplitter` returns the same messages for any split of the
received bytes.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from antiphon.doors.extproc.transport import CallFailed, GrpcStatus

_PREFIX: Final = 5
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_LONGEST_MESSAGE: Final = 1024


def prefix(size: int) -> bytes:
    """Return the five-byte prefix of a message with this size: the flag "uncompressed" and the length."""
    return b"\x00%b" % size.to_bytes(4, "big")


def with_prefix(message: bytes) -> bytes:
    """Return a message in its wire form: the flag "uncompressed", the length and the bytes."""
    return b"\x00%b%b" % (len(message).to_bytes(4, "big"), message)


class MessageSplitter:
    """Splits a call's received bytes into messages of at most `limit` bytes."""

    __slots__ = ("_limit", "_rest", "_wanted")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._wanted = _PREFIX

    @property
    def held(self) -> int:
        """The number of buffered bytes of an incomplete message."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that these bytes complete. Raises `CallFailed` for a compressed or oversized message."""
        size = len(data)
        if not self._rest and size >= _PREFIX and int.from_bytes(data[1:_PREFIX], "big") == size - _PREFIX:
            # Fast path: the data is exactly one message.
            self._check(data[0], size - _PREFIX)
            return [data[_PREFIX:]]
        rest = self._rest
        rest += data
        if len(rest) < self._wanted:
            return []
        messages = []
        at = 0
        while len(rest) - at >= _PREFIX:
            length = int.from_bytes(rest[at + 1 : at + _PREFIX], "big")
            self._check(rest[at], length)
            end = at + _PREFIX + length
            if end > len(rest):
                self._wanted = end - at
                break
            # A memoryview avoids a second copy of the buffer's slice.
            with memoryview(rest) as view:
                messages.append(bytes(view[at + _PREFIX : end]))
            at = end
        else:
            self._wanted = _PREFIX
        del rest[:at]
        return messages

    def _check(self, flag: int, length: int) -> None:
        if flag:
            raise CallFailed(GrpcStatus.UNIMPLEMENTED, "compressed messages are not supported")
        if length > self._limit:
            raise CallFailed(
                GrpcStatus.RESOURCE_EXHAUSTED, f"a message of {length} bytes is larger than {self._limit} bytes"
            )


def status_trailers(status: GrpcStatus, message: str = "") -> list[tuple[bytes, bytes]]:
    """Return the trailers that end a call. The message is percent-encoded and truncated."""
    trailers = [(b"grpc-status", b"%d" % status)]
    if message:
        trailers.append((b"grpc-message", quote(message[:_LONGEST_MESSAGE], safe=" !#$&'()*+,/:;=?@[]").encode()))
    return trailers


def timeout_seconds(value: bytes) -> float | None:
    """Return the seconds of a `grpc-timeout` header value. Returns None unless the value is one to eight digits and a
    unit."""
    text = value.decode("ascii", "replace")
    if not 2 <= len(text) <= 9 or not text[:-1].isdecimal() or text[-1] not in _UNITS:
        return None
    return int(text[:-1]) * _UNITS[text[-1]]
