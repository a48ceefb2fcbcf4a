"""A request's body as it comes, for endpoints that take it so.

Lives here: pieces from the socket, how long each may take, and what broken ones mean. Not here: bodies that are read
whole (`doors/request_body.py`), and any limit of size (the endpoint knows it).

Invariant: no more is taken from the socket than the endpoint asked for, so a slow disk holds the client back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.web_exceptions import HTTPException

from antiphon.doors.request_body import content_codings
from antiphon.errors import ApiError, InvalidRequest
from antiphon.types.transport import Headers

UPLOAD_BYTES = 256 << 10
"""What an upload holds at most: what was read ahead of the endpoint, and the piece it is at."""
_CLOSE: Headers = (("connection", "close"),)


async def body_pieces(request: web.BaseRequest, headers: Headers, seconds: float) -> AsyncIterator[bytes]:
    """The pieces; each may take so many seconds to come. Raises `ApiError` (400, 408, 415)."""
    if content_codings(headers):
        raise ApiError(
            "Uploads are taken as they are: send the body without a content-encoding.",
            status=415,
            type="invalid_request_error",
            code="unsupported_content_encoding",
            headers=(("accept-encoding", "identity"), *_CLOSE),
        )
    await go_on_reading(request)
    while True:
        try:
            async with asyncio.timeout(seconds):
                piece = await request.content.readany()
        except TimeoutError:
            raise ApiError(
                f"Nothing more of the request body arrived for {seconds:g} seconds.",
                status=408,
                type="invalid_request_error",
                code="request_timeout",
                headers=_CLOSE,
            ) from None
        except (web.RequestPayloadError, HTTPException):
            raise misframed() from None
        if not piece:
            return
        yield piece


def misframed() -> InvalidRequest:
    """The refusal of a body whose end cannot be found; the connection is of no more use."""
    return InvalidRequest("The request body is not framed correctly.", code="invalid_body", headers=_CLOSE)


async def go_on_reading(request: web.BaseRequest) -> None:
    """Tell a client that waits for it to send its body."""
    if request.headers.get("expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # What was written is no part of the response that follows.
        request.writer.output_size = 0


def is_unread(request: web.BaseRequest) -> bool:
    """Whether some of the body has not come: it must not be taken for the next request."""
    return not request.content.is_eof()
