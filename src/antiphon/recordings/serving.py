"""What the recorder and the replayer share as HTTP servers: errors in OpenAI's form, and cut connections.

Not here: listening (`commands/chat_servers.py`).

Invariant: a client gets each error as OpenAI's error object, unless an answer has begun.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from antiphon.errors import ApiError, InternalError, RequestRefused

SEND_SECONDS: Final = 300.0
"""The most seconds for which a client may read nothing."""


@web.middleware
async def openai_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer an error with OpenAI's error object."""
    try:
        return await handler(request)
    except ApiError as error:
        return _answer(error, error.status)
    except web.HTTPException as error:
        kind = InternalError if error.status >= 500 else RequestRefused
        return _answer(kind(f"{error.reason}."), error.status)


def _answer(error: ApiError, status: int) -> web.Response:
    return web.Response(body=error.body(), status=status, content_type="application/json", headers=dict(error.headers))


def cut_off(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Close the connection before the end of the answer. The client still gets all bytes that were written."""
    if request.transport is not None:
        request.transport.close()
    return response
