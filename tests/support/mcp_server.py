"""A real MCP server for tests: the official SDK's server over uvicorn, in this process.

Lives here: starting and stopping the server, and its tools. Not here: broken servers (scripted servers simulate those).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import uvicorn
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from starlette.types import ASGIApp, Receive, Scope, Send

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


@dataclass
class OpenMcpServer:
    """A running server. `url` is its endpoint. `headers` has the headers of every received request, and `counted` the
    number of calls of the tool `count`."""

    url: str
    headers: list[dict[str, str]] = field(default_factory=list)
    counted: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)
    stops: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def listings(self) -> int:
        """The number of times that a client connected and listed the tools."""
        return sum("mcp-session-id" not in one for one in self.headers)


@asynccontextmanager
async def open_mcp_server(*, sse: bool = False, token: str = "") -> AsyncIterator[OpenMcpServer]:
    """Start a server with a few tools. With a `token`, the server returns 401 to requests without it."""
    server = MCPServer("Dice")
    opened = OpenMcpServer("")

    @server.tool(description="Roll dice.", annotations=ToolAnnotations(read_only_hint=True))
    def roll(sides: int = 6) -> str:
        return f"rolled one of {sides}"

    @server.tool()
    def fail() -> str:
        """A tool that always fails."""
        raise ToolError("no dice")

    @server.tool()
    def look() -> list[str | Image]:
        """A tool that returns a picture."""
        return ["a pixel", Image(data=PIXEL, format="png")]

    @server.tool()
    def count() -> dict[str, int]:
        """A tool that returns structured content."""
        opened.counted += 1
        return {"six": 6}

    @server.tool()
    async def wait(context: Context) -> str:
        """A tool that takes a while."""
        opened.started.set()
        await opened.stops.wait()
        return "at last"

    app: ASGIApp = server.sse_app() if sse else server.streamable_http_app()

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {key.decode(): value.decode() for key, value in scope["headers"]}
            opened.headers.append(headers)
            if token and headers.get("authorization") != f"Bearer {token}":
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": b"who are you?"})
                return
        await app(scope, receive, send)

    config = uvicorn.Config(guarded, host="127.0.0.1", port=0, log_level="critical", lifespan="on", ws="none")
    running = uvicorn.Server(config)
    running.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.001)
    port = running.servers[0].sockets[0].getsockname()[1]
    opened.url = f"http://127.0.0.1:{port}{'/sse' if sse else '/mcp'}"
    try:
        yield opened
    finally:
        opened.stops.set()
        running.should_exit = running.force_exit = True
        await task
