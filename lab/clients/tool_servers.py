"""Starts the servers of the hosted tools for `scripts/lab clients`: a substitute for SearXNG with a page, and a
published MCP server.

Lives here: starting and stopping the servers. Not here: the clients' use of the tools (`scenarios_tools.py`,
`tools_node.mjs`).

The MCP server is `@modelcontextprotocol/server-everything`, the protocol's own reference server, as npm installs it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

from aiohttp import ClientError, ClientSession, web

_PAGE = "<title>Swifts</title><nav>Menu</nav><p>Swifts sleep in the air. They land to breed.</p>"
_PATIENCE = 30.0


class ToolServers:
    """The running servers. `environ` has the gateway's settings for these servers, and `mcp_url` is for the clients."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runner: web.AppRunner | None = None
        self._process: asyncio.subprocess.Process | None = None
        self.environ: dict[str, str] = {}
        self.mcp_url = ""

    async def start(self) -> None:
        """Start both servers. Raises RuntimeError if one of the servers does not start."""
        app = web.Application()
        app.router.add_get("/search", self._search)
        app.router.add_get("/swifts", self._page)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self.environ = {
            "ANTIPHON_WEB_SEARCH__PROVIDER": "searxng",
            "ANTIPHON_WEB_SEARCH__URL": self._url,
            "ANTIPHON_FETCH__ALLOW_PRIVATE": "127.0.0.1",
            "ANTIPHON_MCP__ALLOW": "127.0.0.1",
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        script = self._folder / "node_modules/@modelcontextprotocol/server-everything/dist/index.js"
        self._process = await asyncio.create_subprocess_exec(
            *(str(self._folder / "py" / "bin" / "node"), str(script), "streamableHttp"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "PORT": str(port)},
            start_new_session=True,
        )
        self.mcp_url = f"http://127.0.0.1:{port}/mcp"
        try:
            async with asyncio.timeout(_PATIENCE), ClientSession() as session:
                while not await _answers(session, self.mcp_url):
                    if self._process.returncode is not None:
                        raise RuntimeError(f"the MCP server ended: {self._process.returncode}")
                    await asyncio.sleep(0.05)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop both servers."""
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _search(self, request: web.Request) -> web.Response:
        assert request.query["format"] == "json"
        found = {"url": f"{self._url}/swifts", "title": "Swifts", "content": f"About {request.query['q']}.", "score": 1}
        return web.json_response({"query": request.query["q"], "results": [found], "answers": [], "infoboxes": []})

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(text=_PAGE, content_type="text/html")


async def _answers(session: ClientSession, url: str) -> bool:
    try:
        async with session.get(url):
            return True
    except (ClientError, OSError):
        return False
