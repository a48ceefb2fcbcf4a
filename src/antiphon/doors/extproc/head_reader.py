"""Decodes ext_proc header messages, with a small cache for repeated headers.

This module decodes `ProcessingRequest` messages with request or response headers. `wire.py` handles other messages and
unusual encodings with the generated protobuf classes.

With the generated protobuf classes a small request would take 7 % more instructions (15 % in the compiled build)
(docs/explanation/performance.md).

The cache holds only short headers whose names are in `_HARMLESS`, and none of these headers carries a credential. Other
headers are decoded each time, so no secret value of a client outlives its request.

Invariant: this code reads what the generated protobuf classes would read (a test compares them). The generated protobuf
classes still handle every message with an unusual encoding. The cache has a size limit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from antiphon.engine.exchange.phase import RESPONSES_PATH
from antiphon.types.transport import Headers

REQUEST_HEADERS: Final = 0x12
RESPONSE_HEADERS: Final = 0x1A
"""The first byte of a `response_headers` message from Envoy: the tag of field 3, length-delimited. `REQUEST_HEADERS` is
the tag of field 2."""
# Inside the message, HttpHeaders.headers, HeaderMap.headers and HeaderValue.key are field 1, and HeaderValue.raw_value
# is field 3.
_FIRST: Final = 0x0A
_RAW_VALUE: Final = 0x1A
_END: Final = b"\x18\x01"
_LONGEST: Final = 256
_MOST: Final = 1024

_HARMLESS: Final = frozenset(
    {
        ":authority",
        ":method",
        ":scheme",
        ":status",
        "accept",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "connection",
        "content-encoding",
        "content-type",
        "server",
        "transfer-encoding",
        "user-agent",
        "vary",
        "x-envoy-attempt-count",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-upstream-service-time",
        "x-forwarded-proto",
    }
)
"""The names of headers that may be cached: they have few values and describe only the transfer."""
_HARMLESS_FAMILY: Final = "x-stainless-"
KEPT_HEADERS: Final[dict[bytes, tuple[str, str]]] = {}


def read_head(message: bytes) -> tuple[Headers, bool, bytes] | None:
    """Decode a message that begins with `REQUEST_HEADERS` or `RESPONSE_HEADERS`. Returns the headers, the
    `end_of_stream` flag and the bytes after the headers field. Returns None for an unusual encoding."""
    try:
        size, at = message[1], 2
        if size > 127:
            high, at = message[2], 3
            if high > 127:
                return None
            size = size & 127 | high << 7
        stop = at + size
        if message[at] != _FIRST:
            return None
        size, at = message[at + 1], at + 2
        if size > 127:
            high, at = message[at], at + 1
            if high > 127:
                return None
            size = size & 127 | high << 7
        end = at + size
        headers = []
        kept = KEPT_HEADERS
        while at < end:
            if message[at] != _FIRST:
                return None
            size, at = message[at + 1], at + 2
            if size > 127:
                high, at = message[at], at + 1
                if high > 127:
                    return None
                size = size & 127 | high << 7
            entry = message[at : at + size]
            at += size
            headers.append(kept.get(entry) or _read(entry))
    except (IndexError, ValueError):
        return None
    if at != end or stop > len(message):
        return None
    if end == stop:
        return tuple(headers), False, message[stop:]
    if message[end:stop] == _END:
        return tuple(headers), True, message[stop:]
    return None


def _read(entry: bytes) -> tuple[str, str]:
    """Decode one HeaderValue message, in which the name comes before the raw value. Raises `ValueError` or `IndexError`
    for any other encoding."""
    size = entry[1]
    stop = size + 2
    if size > 127 or entry[0] != _FIRST or stop > len(entry):
        raise ValueError
    name = _name(entry[2:stop])
    if stop == len(entry):
        return name, ""
    size, at = entry[stop + 1], stop + 2
    if size > 127:
        high, at = entry[at], at + 1
        if high > 127:
            raise ValueError
        size = size & 127 | high << 7
    if entry[stop] != _RAW_VALUE or not size or at + size != len(entry):
        # A header with an empty raw value may have its value in the field `value`.
        raise ValueError
    pair = name, entry[at:].decode("utf-8", "surrogateescape")
    if len(entry) < _LONGEST and _is_harmless(*pair):
        if len(KEPT_HEADERS) >= _MOST:
            # A full cache is emptied. The usual headers fill the cache again soon.
            KEPT_HEADERS.clear()
        KEPT_HEADERS[entry] = pair
    return pair


def _is_harmless(name: str, value: str) -> bool:
    if name == ":path":
        # A query string may contain a key, so a path with a query is not cached.
        return value == RESPONSES_PATH
    return name in _HARMLESS or name.startswith(_HARMLESS_FAMILY)


@lru_cache(maxsize=_MOST)
def _name(raw: bytes) -> str:
    return raw.decode().lower()
