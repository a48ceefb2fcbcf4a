"""Builds parts of answers to Envoy: headers, body chunks, metadata and early refusals.

This module contains only values and pure functions. This module also decompresses an upstream's body if the body is
compressed although the request did not accept compression. `stream.py`, `relay_state.py` and `immediate_response.py`
decide when to send an answer. `peer.py` sends the answer, and the exchange decides what happens after a damaged body.

The decoders accept chunks of any size, and follow the same rules as aiohttp, which the HTTP server uses. A gzip body
may have several members, and a deflate body may lack the zlib header. No bytes may follow the end of a body.

Invariant: a decoder raises no error for a damaged body, but sets its `fault`. One input chunk produces at most
`MAX_PER_PART` bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from antiphon.doors.extproc import wire
from antiphon.engine.ports.actions import Finish, Usage
from antiphon.errors import ApiError
from antiphon.types.transport import OWN_JSON, Headers, header_value

PART = 256 * 1024
"""The maximum number of body bytes in one ext_proc message."""


MAX_PER_PART = 64 << 20
_GZIP: Final = zlib.MAX_WBITS | 16
_NAMES: Final = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


@dataclass(frozen=True, slots=True)
class Accounting:
    """Settings for the token counts and costs that the sidecar reports to Envoy as metadata.

    `cost_of` returns the cost of a model's tokens, in millionths of the currency of the configured prices, or 0 when
    the price is unknown. `record_seconds` is the number of seconds between two reports of the token counts of a running
    stream.
    """

    cost_of: Callable[[str, Usage], int]
    record_seconds: float = 5.0


def with_request_id(headers: Headers, request_id: str) -> Headers:
    """Return the headers with the request's id as `x-request-id`. Headers that have an `x-request-id` already, from a
    passed-through upstream response, stay unchanged."""
    if not request_id or header_value(headers, "x-request-id") is not None:
        return headers
    return (*headers, ("x-request-id", request_id))


def in_parts(body: bytes, part: int = PART) -> Iterator[tuple[bytes | memoryview, bool]]:
    """Split a body into chunks of at most `part` bytes. If there are several chunks, they are views of the body, not
    copies. The result has a flag for each chunk, which is True only for the last chunk. An empty body gives one empty
    chunk."""
    last = max(0, len(body) - 1) // part
    if not last:
        yield body, True
        return
    view = memoryview(body)
    for number in range(last + 1):
        yield view[number * part : (number + 1) * part], number == last


def whole_answer(
    status: int, headers: Headers, body: bytes, head_told: wire.Metadata | None, end_told: wire.Metadata | None
) -> Iterator[bytes]:
    """Build the messages of a complete response. The sidecar sends them after the request's `end_of_stream`. Envoy's
    `local_reply_config` never rewrites a response in this form, unlike an immediate response."""
    yield wire.local_head(status, headers, head_told)
    for part, last in in_parts(body):
        yield wire.local_body(part, last, end_told if last else None)


def head_metadata(model: str) -> wire.Metadata:
    """Build the metadata that accompanies a response head for Envoy."""
    return {"model": model} if model else {}


def final_metadata(response_id: str, finish: Finish, accounting: Accounting) -> wire.Metadata:
    """Build the metadata for Envoy's access logs, rate limits and metrics at the end of a response. The token counts
    cover all model calls of the response. `cost` is in millionths of the currency of the configured prices."""
    metadata: wire.Metadata = {"status": finish.outcome}
    if response_id:
        metadata["response_id"] = response_id
    if finish.model:
        metadata["model"] = finish.model
    usage = finish.usage
    if usage is not None:
        metadata["input_tokens"] = usage.input_tokens
        metadata["output_tokens"] = usage.output_tokens
        metadata["total_tokens"] = usage.total_tokens
        if usage.cached_tokens:
            metadata["cached_tokens"] = usage.cached_tokens
        if cost := accounting.cost_of(finish.model, usage):
            metadata["cost"] = cost
        metadata[wire.TOKEN_USAGE] = wire.TokenRecord(finish.model, usage)
    return metadata


def running_metadata(model: str, usage: Usage | None) -> wire.Metadata | None:
    """Build the metadata for Envoy in the middle of a long stream: the estimated tokens so far. If the stream is cut,
    Envoy logs the last estimate. Returns None if `usage` is None."""
    if usage is None:
        return None
    return {wire.TOKEN_USAGE: wire.TokenRecord(model, usage, estimated=True)}


def refusal_message(error: ApiError, request_id: str) -> bytes:
    """Build an immediate error response. Envoy accepts such a response as the first answer, even during an upload."""
    headers = with_request_id((("content-type", "application/json"), *error.headers), request_id)
    details = f"{OWN_JSON}{error.code or 'refused'}"
    return wire.immediate(error.status, headers, error.body(request_id), details, {"status": "error"})


def decoder_for(encoding: str | None) -> Inflate | None:
    """Return a decoder for a `content-encoding` value, or None for a body without compression. For an unknown encoding,
    the decoder's `fault` is set."""
    name = (encoding or "").strip().lower()
    return None if name in ("", "identity") else Inflate(name)


class Inflate:
    """Decodes one compressed body. `fault` describes the first error in the body. If the body is valid, `fault` is
    empty. One input chunk produces at most `most` bytes."""

    __slots__ = ("_decoder", "_most", "_name", "fault")

    def __init__(self, encoding: str, most: int = MAX_PER_PART) -> None:
        self._most = most
        self._name = _NAMES.get(encoding, "")
        self._decoder: zlib._Decompress | None = None
        self.fault = "" if self._name else f"content-encoding {encoding[:32]!r}"

    def feed(self, data: bytes) -> bytes:
        """Return the decoded bytes of one input chunk."""
        parts: list[bytes] = []
        room = self._most
        while data and not self.fault:
            if self._decoder is None:
                self._decoder = zlib.decompressobj(self._window(data[0]))
            elif self._decoder.eof:
                if self._name != "gzip":
                    self.fault = f"extra bytes after the end of a {self._name} body"
                    break
                self._decoder = zlib.decompressobj(_GZIP)
            try:
                # `max_length` must be at least 1, because zlib takes 0 as "no limit".
                parts.append(self._decoder.decompress(data, max(room, 1)))
            except zlib.error:
                self.fault = f"a broken {self._name} body"
                break
            room -= len(parts[-1])
            if self._decoder.unconsumed_tail or room < 0:
                self.fault = f"a {self._name} body that decompresses to too many bytes"
            data = self._decoder.unused_data
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def end(self) -> None:
        """Mark the end of the input. A truncated body sets `fault`."""
        if not self.fault and (self._decoder is None or not self._decoder.eof):
            self.fault = f"an incomplete {self._name} body"

    def _window(self, first: int) -> int:
        """Choose zlib's `wbits` from the first byte. By the standard, the body begins with zlib's method number (8),
        but some servers send raw deflate."""
        if self._name == "gzip":
            return _GZIP
        return zlib.MAX_WBITS if first & 15 == 8 else -zlib.MAX_WBITS
