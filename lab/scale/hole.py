"""A TCP proxy in front of a server that can drop all bytes, or forward to another server.

Lives here: the proxy. The proxy drops bytes like a firewall. Its target can change, like an address that moves from one
machine to another. Not here: the programs that use the proxy.

Invariant: dropped bytes never arrive later. Connections from before a fault cannot be used afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_PIECE = 1 << 16


class Hole:
    """The proxy. Clients connect to `port` instead of the server's port."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._swallows = False
        self._dead: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    def swallow(self) -> None:
        """Drop all bytes from now on."""
        self._swallows = True
        self._dead |= self._open

    def heal(self) -> None:
        """Forward new connections to the server again."""
        self._swallows = False

    def lead_to(self, server_port: int) -> None:
        """Forward new connections to another server, and close the existing ones."""
        self._server_port = server_port
        for writer in self._open:
            writer.transport.abort()

    async def serve(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        self._open.add(answers)
        if self._swallows:
            self._dead.add(answers)
        server: asyncio.StreamWriter | None = None
        try:
            if answers in self._dead:
                await self._pump(client, None, answers)
                return
            reader, server = await asyncio.open_connection("127.0.0.1", self._server_port)
            both = [asyncio.ensure_future(self._pump(*way, answers)) for way in ((client, server), (reader, answers))]
            # The connection ends when the client or the server closes it. While bytes are dropped, the client does not
            # see the server's close.
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if answers in self._dead:
                await both[0]
            for way in both:
                way.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        except OSError:
            pass
        finally:
            self._open.discard(answers)
            self._dead.discard(answers)
            for writer in (answers, server):
                if writer is not None:
                    writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None, connection: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                if writer is not None and connection not in self._dead:
                    writer.write(data)
                    await writer.drain()


@asynccontextmanager
async def hole(server_port: int) -> AsyncIterator[Hole]:
    """Start a proxy for the server at this local port."""
    made = Hole(server_port)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
