"""Encodes and decodes ext_proc messages that carry a body chunk. Nearly all messages of a stream have this form.

This module handles `ProcessingRequest` and `ProcessingResponse` messages that contain only a body chunk. `wire.py`
handles other messages and unusual encodings with the generated protobuf classes.

The generated protobuf classes take 0.8 µs for a chunk in each direction, which is half of the chunk's translation time.
This module takes 0.4 µs to read and 0.15 µs to write a chunk.

Invariant: this code reads and writes byte for byte what the generated protobuf classes would read and write (a test
compares them). The generated protobuf classes still handle every message with an unusual encoding. (Only the content of
a metadata_context is not checked, because nothing reads it in these messages.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

REQUEST_BODY: Final = 0x22
RESPONSE_BODY: Final = 0x2A
"""The first byte of a `response_body` message from Envoy: the tag of field 5, length-delimited. `REQUEST_BODY` is the
tag of field 4."""
_ANSWERS: Final = {REQUEST_BODY: 0x1A, RESPONSE_BODY: 0x22}
_BODY: Final = 0x0A
_END: Final = b"\x10\x01"
# Envoy 1.40 appends a metadata_context field to every message. It has content only with `owner.source: metadata`.
_USUAL_TAILS: Final = (b"", b"\x42\x00")
_METADATA_CONTEXT: Final = 0x42
# The field tags of the nested answer: BodyResponse.response, CommonResponse.body_mutation and
# BodyMutation.streamed_response.
_NESTING: Final = (0x0A, 0x1A, 0x1A)


def read_part(message: bytes) -> tuple[bytes, bool] | None:
    """Decode a message that begins with `REQUEST_BODY` or `RESPONSE_BODY`. Returns the body and the `end_of_stream`
    flag, or None for an unusual encoding."""
    try:
        size, at = message[1], 2
        if size > 127:
            high, at = message[2], 3
            size = size & 127 | (high & 127) << 7
            if high > 127:
                high, at = message[at], at + 1
                if high > 127:
                    return None
                size |= high << 14
        end = at + size
        if len(message) < end or (message[end:] not in _USUAL_TAILS and not _is_context(message, end)):
            return None
        if message[at] != _BODY:
            # Envoy ends a body of known length with an empty chunk.
            return (b"", True) if message[at:end] == _END else None
        size, at = message[at + 1], at + 2
        if size > 127:
            high, at = message[at], at + 1
            size = size & 127 | (high & 127) << 7
            if high > 127:
                high, at = message[at], at + 1
                if high > 127:
                    return None
                size |= high << 14
    except IndexError:
        return None
    stop = at + size
    if stop == end:
        return message[at:stop], False
    if stop < end and message[stop:end] == _END:
        return message[at:stop], True
    return None


def _is_context(message: bytes, at: int) -> bool:
    """Whether the rest of the message is one metadata_context field of at most 16 KiB. Raises `IndexError` if the
    message ends inside the field's size."""
    size, start = message[at + 1], at + 2
    if size > 127:
        high, start = message[start], start + 1
        size = size & 127 | (high & 127) << 7
        if high > 127:
            return False
    return message[at] == _METADATA_CONTEXT and start + size == len(message)


def write_part(kind: int, body: bytes | memoryview, end: bool) -> bytes:
    """Encode the answer to a body message. `kind` is the first byte of Envoy's message, and `body` must not be
    empty."""
    return b"".join((_before(kind, len(body), end), body, _END if end else b""))


@lru_cache(maxsize=4096)
def _before(kind: int, size: int, end: bool) -> bytes:
    """Encode all bytes of the answer before the body. These bytes depend only on the kind, the body's size and the end
    flag."""
    before = bytes((_BODY,)) + varint(size)
    for tag in (*reversed(_NESTING), _ANSWERS[kind]):
        inside = len(before) + size + (len(_END) if end else 0)
        before = bytes((tag,)) + varint(inside) + before
    return before


def varint(number: int) -> bytes:
    """Encode a number as a protobuf varint."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
