"""A hand-written decoder for ext_proc header messages, with a small cache for repeated headers.

Lives here: the bytes of `ProcessingRequest` with request or response headers, and the headers that are kept. Not here:
every other message, and every unusual form of these, for which the generated classes are asked (`wire.py`).

Why by hand: with the generated classes a small request takes 7 % more instructions from sources, and 15 % more in the
compiled build (docs/explanation/performance.md).

Kept are headers of the names below alone, none of which carries a credential, and each only where it is short. All
others are read anew each time, so that no value of a client's that could be a secret outlives its request.

Invariant: what is read here is what the generated classes would read (a test compares them); whatever does not have
exactly the usual form is left to them. What is kept has a bound.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from antiphon.engine.exchange.options import RESPONSES_PATH
from antiphon.types.transport import Headers

REQUEST_HEADERS: Final = 0x12
RESPONSE_HEADERS: Final = 0x1A
"""The first byte of a message from Envoy: field 2 or 3, with a length."""
# Inside: HttpHeaders.headers, HeaderMap.headers and HeaderValue.key are field 1, HeaderValue.raw_value is 3.
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
"""Names whose values say how something is sent, and are few."""
_HARMLESS_FAMILY: Final = "x-stainless-"
KEPT_HEADERS: Final[dict[bytes, tuple[str, str]]] = {}


def read_head(message: bytes) -> tuple[Headers, bool, bytes] | None:
    """Headers, end of stream, and what stands behind the head in a message that begins with one of the two bytes; None
    when it is an unusual one."""
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
    """One header: its name, and then its raw value. Raises `ValueError` and `IndexError` where it looks otherwise."""
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
        # What has an empty raw value may have another one.
        raise ValueError
    pair = name, entry[at:].decode("utf-8", "surrogateescape")
    if len(entry) < _LONGEST and _is_harmless(*pair):
        if len(KEPT_HEADERS) >= _MOST:
            # What is usual is soon here again.
            KEPT_HEADERS.clear()
        KEPT_HEADERS[entry] = pair
    return pair


def _is_harmless(name: str, value: str) -> bool:
    if name == ":path":
        # A query may have a key in it.
        return value == RESPONSES_PATH
    return name in _HARMLESS or name.startswith(_HARMLESS_FAMILY)


@lru_cache(maxsize=_MOST)
def _name(raw: bytes) -> str:
    return raw.decode().lower()
