"""Defines how the servers reach the console: the port that the console's pages implement, and the paths of the console.

Not here: the pages, sessions and sign-in of the console (the package `console`), and the listeners that serve it
(`doors/http/console.py`, `envoy/bootstrap.py`).

Invariant: every path of the console is `CONSOLE_PATH` or below it.
"""

from __future__ import annotations

from typing import Final, Protocol

from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.engine.ports.callers import Caller
from antiphon.types.transport import CONSOLE_PATH

RUN_PATH: Final = CONSOLE_PATH + "/run"
"""The path to which the playground sends a Responses request. The server runs it as `POST /v1/responses`."""


class ConsolePages(Protocol):
    """The pages of the console, which sign users in themselves."""

    async def handle(self, request: ApiRequest) -> ApiResponse:
        """Answer a request to a path of the console. This method never raises, except for cancellation. A form with
        uploads (`multipart/form-data`) arrives as `request.body_stream`, every other body as `request.body`."""
        ...

    def reads_body(self, method: str, path: str) -> bool:
        """Whether a page needs the request body. Without such a page, the server does not read the body."""
        ...

    def runs(self, request: ApiRequest) -> Caller | None:
        """The caller in whose name a `POST` to `RUN_PATH` creates a response. None if `handle` answers the request. The
        request has no body yet. Raises `ApiError` when the session or the CSRF token is wrong."""
        ...


def is_console(path: str) -> bool:
    """Whether a normalized path belongs to the console."""
    return path == CONSOLE_PATH or path.startswith(CONSOLE_PATH + "/")
