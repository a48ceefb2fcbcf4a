"""gRPC framing over HTTP/2 as plain bytes: message prefixes, status trailers, timeouts.

Lives here: pure functions and the message splitter. Not here: HTTP/2 and sockets (`transport_http2.py`).

Source: gRPC's PROTOCOL-HTTP2 document. Invariant: `MessageSplitter` returns whole messages for any split of the bytes.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from antiphon.doors.extproc.transport import CallFailed, GrpcStatus

_PREFIX: Final = 5
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_LONGEST_MESSAGE: Final = 1024


def prefix(size: int) -> bytes:
    """The prefix of a message of this size: uncompressed flag, length."""
    return b"\x00%b" % size.to_bytes(4, "big")


def with_prefix(message: bytes) -> bytes:
    """A message in its wire form: uncompressed flag, length, bytes."""
    return b"\x00%b%b" % (len(message).to_bytes(4, "big"), message)


class MessageSplitter:
    """Splits a call's bytes into messages of at most `limit` bytes."""

    __slots__ = ("_limit", "_rest", "_wanted")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._wanted = _PREFIX

    @property
    def held(self) -> int:
        """The buffered bytes of an incomplete message."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that these bytes complete. Raises `CallFailed` for a compressed or oversized one."""
        size = len(data)
        if not self._rest and size >= _PREFIX and int.from_bytes(data[1:_PREFIX], "big") == size - _PREFIX:
            # The usual case: the data is one whole message.
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
            # A slice of the buffer would be copied twice.
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
    """The trailers that end a call; the message is percent-encoded and cut."""
    trailers = [(b"grpc-status", b"%d" % status)]
    if message:
        trailers.append((b"grpc-message", quote(message[:_LONGEST_MESSAGE], safe=" !#$&'()*+,/:;=?@[]").encode()))
    return trailers


def timeout_seconds(value: bytes) -> float | None:
    """A `grpc-timeout` in seconds; None when it is not one (at most eight digits and a unit)."""
    text = value.decode("ascii", "replace")
    if not 2 <= len(text) <= 9 or not text[:-1].isdecimal() or text[-1] not in _UNITS:
        return None
    return int(text[:-1]) * _UNITS[text[-1]]
