"""What opens an MCP server or a search service is in no answer, no file of the data folder and no line of the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.chat_server import ChatServer, Received, answer, chunk, completion, event, json_answer, text_stream
from tests.support.gateway import post, start_gateway
from tests.support.mcp_server import open_mcp_server
from tests.support.state import at_rest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.full,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]

TOKEN, HEADER, IN_URL, KEY, CONNECTOR = "T0KENxyzzy", "HEADERplugh", "URLfrotz", "KEYnitfol", "OPERATORyomin"
SECRETS = (TOKEN, HEADER, KEY, CONNECTOR)
SAID = "QUESTIONgnusto"


def model(request: Received) -> Any:
    """Calls every tool once, and then answers."""
    chat = request.json
    names = [tool["function"]["name"] for tool in chat.get("tools", ())]
    wanted = [name for name in names if name.endswith(("__roll", "__fail")) or name == "web_search"]
    if chat["messages"][-1]["role"] == "tool":
        wanted = []
    calls = [
        {"index": n, "id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": '{"query":"x"}'}}
        for n, name in enumerate(wanted)
    ]
    if not chat.get("stream"):
        return json_answer(completion("Done.", **({"tool_calls": calls} if calls else {})))
    if calls:
        return answer(
            parts=[
                *(event(chunk({"tool_calls": [call]})) for call in calls),
                event(chunk(finish_reason="tool_calls")),
                b"data: [DONE]\n\n",
            ]
        )
    return answer(parts=text_stream("Done."))


@pytest.mark.parametrize("mode", ["http", "drive"])
async def test_secrets_of_tools_stay_where_they_are_used(mode: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with (
        ChatServer() as chat,
        ChatServer() as search,
        open_mcp_server(token=TOKEN) as mcp,
        open_mcp_server(token=CONNECTOR) as own,
    ):
        chat.default = model
        # It repeats what it was sent, as some do.
        search.default = lambda call: json_answer({"message": f"no such key {call.headers}"}, 401)
        config = tmp_path / "settings.json"
        connector = {"url": own.url, "headers": {"Authorization": f"Bearer {CONNECTOR}"}}
        config.write_text(
            json.dumps(
                {
                    "mcp": {"allow": ["127.0.0.1"], "connectors": {"dice": connector}},
                    "web_search": {"provider": "brave", "url": search.url(""), "api_key": KEY},
                    "fetch": {"allow_private": ["127.0.0.1"]},
                }
            )
        )
        arguments = ("--door", "http") if mode == "http" else ("--mode", "drive")
        gateway = await start_gateway(chat.base_url, data, *arguments, "--config", str(config))
        url = f"{gateway.base_url}/responses"
        remote = {
            "type": "mcp",
            "server_label": "remote",
            "server_url": f"{mcp.url}?key={IN_URL}",
            "authorization": TOKEN,
            "headers": {"X-Key": HEADER},
            "require_approval": "never",
        }
        registered = {"type": "mcp", "server_label": "own", "connector_id": "dice", "require_approval": "never"}
        ask = {"model": "m", "input": SAID, "tools": [remote, registered, {"type": "web_search"}]}
        bodies = []
        more: dict[str, Any]
        try:
            for more in ({}, {"stream": True}, {"store": False}):
                got = await post(url, {**ask, **more})
                assert got.status == 200, got.body
                bodies.append(got.body)
            first = json.loads(bodies[0])
            kinds = {item["type"] for item in first["output"]}
            assert {"mcp_call", "mcp_list_tools", "web_search_call"} <= kinds, kinds
            made = await post(f"{gateway.base_url}/conversations", {})
            for more in ({"previous_response_id": first["id"]}, {"conversation": json.loads(made.body)["id"]}):
                got = await post(url, {**ask, **more})
                assert got.status == 200, got.body
                bodies.append(got.body)
            # Wrong credentials, background, wrong declarations.
            got = await post(url, {**ask, "tools": [{**remote, "authorization": f"Basic {HEADER}"}]})
            assert got.status == 424, got.body
            bodies.append(got.body)
            for more in ({"background": True}, {"tools": [{**remote, "headers": {"X-Key": f"{HEADER}\n"}}]}):
                got = await post(url, {**ask, **more})
                assert got.status == 400, got.body
                bodies.append(got.body)
            assert at_rest(data, (SAID,)), "what is stored would be found"
            assert at_rest(data, SECRETS) == set()
        finally:
            await gateway.stop()
        log = "\n".join(gateway.log)
        for secret in SECRETS:
            assert not any(secret.encode() in body for body in bodies), secret
            assert secret not in log
            assert all(secret.encode() not in request.body for request in chat.requests)
        assert IN_URL not in log
        assert at_rest(data, SECRETS) == set()
        assert {request.header("x-subscription-token") for request in search.requests} == {KEY}
        assert {one["x-key"] for one in mcp.headers} == {HEADER}
