"""The demo's MCP server: the official SDK's server with one tool, on a free local port. Prints `ready: URL`."""

from __future__ import annotations

import socket

import uvicorn
from mcp.server.mcpserver import MCPServer

server = MCPServer("Trains")


@server.tool()
def departures(city: str) -> str:
    """When the next trains leave a city."""
    return f"From {city}: 9:04 and 9:34, platform 2."


class Announced(uvicorn.Server):
    """A server that prints its URL as soon as it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"ready: http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}/mcp", flush=True)


if __name__ == "__main__":
    Announced(uvicorn.Config(server.streamable_http_app(), host="127.0.0.1", port=0, log_level="warning")).run()
