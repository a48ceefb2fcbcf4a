"""Reads the body of one HTTP request, whole or as a stream, within the limits of size, memory and time.

This module reads a body from aiohttp, sends `100 Continue`, and raises an error for a body that is too slow, too large
or framed incorrectly. `doors/request_body.py` limits and decompresses a whole body, and `server.py` handles the
request.

Invariant: after an error, the connection closes. Otherwise the rest of the body would be read as the next request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Literal, NamedTuple

from aiohttp import web
from aiohttp.web_exceptions import HTTPException

from antiphon.doors.request_body import WholeBody, content_codings, decoded, too_large, too_slow
from antiphon.engine.exchange.budget import Hold
from antiphon.errors import ApiError, InvalidRequest
from antiphon.types.transport import Headers

BodyKind = Literal["none", "whole", "stream"]
"""How a handler gets the request body. `none`: the server does not read the body."""


class BodyLimit(NamedTuple):
    """The limits of one request body: its size in bytes, and the seconds in which a whole body must arrive."""

    size: int
    seconds: float


CLOSE: Headers = (("connection", "close"),)
UPLOAD_BYTES = 256 << 10
"""The maximum number of bytes of an upload in memory: the bytes read ahead, and the chunk in use."""


async def read_whole(request: web.BaseRequest, headers: Headers, hold: Hold, limit: int, seconds: float) -> bytes:
    """Read the whole body and decompress it. Raises `ApiError` when the body exceeds `limit` bytes, the memory that
    `hold` reserves, or the time."""
    try:
        body = WholeBody(headers, hold, limit)
        content = request.content
        if content.is_eof():
            # The body arrived together with its head, as small bodies do.
            await _go_on_reading(request)
            body.add(content.read_nowait())
        else:
            async with asyncio.timeout(seconds):
                await _go_on_reading(request)
                while part := await content.readany():
                    body.add(part)
    except TimeoutError:
        raise _and_close(too_slow(seconds)) from None
    except ApiError as error:
        raise _and_close(error) from None
    except (web.RequestPayloadError, HTTPException):
        raise _misframed() from None
    return await decoded(body)


async def body_pieces(
    request: web.BaseRequest, headers: Headers, seconds: float, limit: int | None = None
) -> AsyncIterator[bytes]:
    """Yield the chunks of an upload. Each chunk may take `seconds` to arrive. Raises `ApiError` (400, 408, 415), and
    413 for a body of more than `limit` bytes."""
    if content_codings(headers):
        raise ApiError(
            "Antiphon stores uploads without decoding them. Send the body without a content-encoding.",
            status=415,
            type="invalid_request_error",
            code="unsupported_content_encoding",
            headers=(("accept-encoding", "identity"), *CLOSE),
        )
    await _go_on_reading(request)
    size = 0
    while True:
        try:
            async with asyncio.timeout(seconds):
                piece = await request.content.readany()
        except TimeoutError:
            raise ApiError(
                f"The client sent no part of the request body for {seconds:g} seconds.",
                status=408,
                type="invalid_request_error",
                code="request_timeout",
                headers=CLOSE,
            ) from None
        except (web.RequestPayloadError, HTTPException):
            raise _misframed() from None
        if not piece:
            return
        size += len(piece)
        if limit is not None and size > limit:
            raise _and_close(too_large(limit))
        yield piece


def _and_close(error: ApiError) -> ApiError:
    """Add `connection: close` to an error that occurs before the body was read. Without this header, aiohttp would read
    the rest of the body as the next request."""
    error.headers = (*error.headers, *CLOSE)
    return error


def _misframed() -> InvalidRequest:
    """The error for a body without a recognizable end. The connection closes, because the next request on it cannot be
    found."""
    return InvalidRequest("The request body is not framed correctly.", code="invalid_body", headers=CLOSE)


async def _go_on_reading(request: web.BaseRequest) -> None:
    """Send `100 Continue` to a client that waits for this status before it sends the body."""
    if request.headers.get("expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The bytes of the interim response must not count as bytes of the final response.
        request.writer.output_size = 0
