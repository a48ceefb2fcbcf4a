"""Runs the tool contract on `mcp`, with a server of the official SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from antiphon.config.tools import McpSettings
from antiphon.tools.mcp_connections import McpConnections
from antiphon.tools.mcp_servers import McpServers
from antiphon.tools.mcp_tool import Mcp
from tests.contracts.tool_contract import Setup, ToolContract
from tests.support.mcp_server import open_mcp_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


async def _anywhere(host: str, port: int, secure: bool, registered: bool) -> str:
    if host != "127.0.0.1":
        raise PermissionError("not public")
    return host


class TestMcp(ToolContract):
    @pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.full)], ids=["streamable", "sse"])
    async def setup(self, request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
        async with open_mcp_server(sse=request.param, token="t0ken") as server:

            @asynccontextmanager
            async def slow() -> AsyncIterator[asyncio.Event]:
                server.started.clear()
                yield server.started

            url = server.url
            limits = McpSettings(connect=5.0)
            tool = Mcp(McpServers(None, {}), McpConnections(_anywhere, limits), limits)
            yield Setup(
                tool,
                {
                    "type": "mcp",
                    "server_label": "dice",
                    "server_url": url,
                    "authorization": "t0ken",
                    "headers": {"x-key": "s3cret"},
                    "require_approval": "never",
                },
                [("roll", {"sides": 6}), ("look", {}), ("count", {})],
                [
                    ({"server_label": None}, ".server_label"),
                    ({"server_label": "a b"}, ".server_label"),
                    ({"server_label": 5}, ".server_label"),
                    ({"server_url": None}, ".server_url"),
                    ({"server_url": "ftp://a.example"}, ".server_url"),
                    ({"server_url": "https://u:p@a.example"}, ".server_url"),
                    ({"server_url": "https://["}, ".server_url"),
                    ({"connector_id": "mail"}, ".server_url"),
                    ({"require_approval": "sometimes"}, ".require_approval"),
                    ({"require_approval": {"always": {"tool_names": "x"}}}, ".require_approval.always.tool_names"),
                    ({"allowed_tools": [5]}, ".allowed_tools[0]"),
                    ({"authorization": "a\nb"}, ".authorization"),
                    ({"headers": {"a b": "c"}}, ".headers"),
                    ({"headers": {"host": "c"}}, ".headers"),
                    ({"headers": {"a": "c\r\nd: e"}}, ".headers"),
                    ({"tunnel_id": "t"}, ".tunnel_id"),
                ],
                slow,
                secrets=("t0ken", "s3cret"),
                namespace="dice",
                slow_call=("wait", {}),
            )
