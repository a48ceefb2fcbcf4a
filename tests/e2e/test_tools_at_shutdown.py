"""A gateway that is told to end while a tool runs: what ends in time is whole, what hangs is cut off and has failed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.chat_server import ChatServer, answer, chunk, event, text_stream
from tests.support.gateway import post, start_gateway
from tests.support.judge import check_stream, parse_sse
from tests.support.mcp_server import open_mcp_server
from tests.support.state import look

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]

_MODES = {"http": ("--door", "http"), "drive": ("--mode", "drive")}
_CALL = {"index": 0, "id": "call_0", "type": "function", "function": {"name": "dice__wait", "arguments": "{}"}}


def _rows(data: Path) -> list[str]:
    return [row[0] for row in look(data, "SELECT status FROM responses")]


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("ends", [True, False], ids=["the tool ends in time", "the tool hangs"])
async def test_shutdown_while_a_tool_runs(mode: str, ends: bool, tmp_path: Path) -> None:
    async with ChatServer() as chat, open_mcp_server() as mcp:
        calls = [event(chunk({"tool_calls": [_CALL]})), event(chunk(finish_reason="tool_calls")), b"data: [DONE]\n\n"]
        chat.script(answer(parts=calls), answer(parts=text_stream("Done.")))
        environ = {
            "ANTIPHON_MCP__ALLOW": "127.0.0.1",
            "ANTIPHON_FETCH__ALLOW_PRIVATE": "127.0.0.1",
            "ANTIPHON_TIMEOUTS__DRAIN": "20" if ends else "0.5",
        }
        gateway = await start_gateway(chat.base_url, tmp_path / "data", *_MODES[mode], environ=environ)
        tool = {"type": "mcp", "server_label": "dice", "server_url": mcp.url, "require_approval": "never"}
        body = {"model": "m", "input": "wait", "stream": True, "tools": [tool]}
        asking = asyncio.create_task(post(f"{gateway.base_url}/responses", body))
        async with asyncio.timeout(60):
            await mcp.started.wait()
        stopping = asyncio.create_task(gateway.stop())
        await gateway.log_line("draining")
        if ends:
            mcp.stops.set()
        async with asyncio.timeout(25):
            got, status = await asyncio.gather(asking, stopping)
        # What had to be cut shows.
        assert status == (0 if ends else 1), "\n".join(gateway.log[-20:])
        assert got.status == 200 and got.cut is not ends
        if ends:
            final = check_stream(parse_sse(got.body))
            assert [item["type"] for item in final["output"]] == ["mcp_list_tools", "mcp_call", "message"]
        assert _rows(tmp_path / "data") == ["completed" if ends else "failed"]
        assert not [line for line in gateway.log if '"level":"error"' in line and "Traceback" in line]
