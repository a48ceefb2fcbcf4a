"""Tools that run here, through a real Envoy and through the HTTP door, read by the official client.

The search service is a stand-in for SearXNG's JSON answers, the MCP server is a real one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
import yaml

from tests.support.chat_server import Answer, ChatServer, answer, chunk, event, json_answer, text_stream
from tests.support.gateway import Gateway, post, start_gateway
from tests.support.judge import check_stream, parse_sse
from tests.support.mcp_server import OpenMcpServer, open_mcp_server

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.asyncio(loop_scope="session")]

_ARGUMENTS = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}
SEARCH: Any = {"type": "web_search", "user_location": {"type": "approximate", "city": "Bonn"}}
DICE: Any = {"type": "mcp", "server_label": "dice", "connector_id": "connector_gmail"}


@dataclass
class Setup:
    gateway: Gateway
    chat: ChatServer
    search: ChatServer
    mcp: OpenMcpServer

    def turns(self, *turns: list[bytes]) -> None:
        """What the model does, turn by turn."""
        self.chat.forget()
        self.chat.script(*(answer(parts=parts) for parts in turns))

    def client(self, key: str = "alice") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.gateway.base_url, api_key=key, max_retries=0)


@pytest_asyncio.fixture(params=_ARGUMENTS, scope="module", loop_scope="session")
async def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Setup]:
    folder = tmp_path_factory.mktemp(f"tools-{request.param}")
    async with ChatServer() as chat, ChatServer() as search, open_mcp_server(token="operators") as mcp:
        settings = {
            "web_search": {"provider": "searxng", "url": search.url("").rstrip("/")},
            "fetch": {"allow_private": ["127.0.0.1"]},
            "mcp": {
                "connectors": {"connector_gmail": {"url": mcp.url, "headers": {"Authorization": "Bearer operators"}}}
            },
        }
        config = folder / "settings.yaml"
        config.write_text(yaml.safe_dump(settings))
        gateway = await start_gateway(
            chat.base_url, folder / "data", "--config", str(config), *_ARGUMENTS[request.param]
        )
        yield Setup(gateway, chat, search, mcp)
        assert await gateway.stop() == 0, "\n".join(gateway.log[-30:])
        assert not any("operators" in line for line in gateway.log)


def _calls(name: str, *arguments: dict[str, Any]) -> list[bytes]:
    made = [
        {
            "index": number,
            "id": f"call_{name}_{number}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(given)},
        }
        for number, given in enumerate(arguments)
    ]
    return [
        *(event(chunk({"tool_calls": [call]})) for call in made),
        event(chunk(finish_reason="tool_calls")),
        b"data: [DONE]\n\n",
    ]


def _found(*urls: str) -> Answer:
    results = [{"url": url, "title": f"Title of {url}", "content": "It rains."} for url in urls]
    return json_answer({"query": "x", "results": results, "infoboxes": []})


async def test_a_web_search_in_a_stream(setup: Setup) -> None:
    setup.search.script(_found("https://a.example/1", "https://b.example/2"))
    setup.turns(_calls("web_search", {"query": "rain in Bonn"}), text_stream("It rains", "【", "2】."))
    async with setup.client() as client:
        stream = await client.responses.create(model="demo-model", input="Rain?", tools=[SEARCH], stream=True)
        events: list[Any] = [one async for one in stream]
    final = events[-1].response
    kinds = [one.type for one in events]
    assert "response.web_search_call.searching" in kinds and "response.output_text.annotation.added" in kinds
    call, message = final.output
    assert (call.type, call.status, call.action.query) == ("web_search_call", "completed", "rain in Bonn")
    assert final.output_text == "It rains."
    (cited,) = message.content[0].annotations
    assert (cited.url, cited.start_index, cited.end_index) == ("https://b.example/2", 0, 8)
    first, second = setup.chat.requests
    assert "Bonn" in json.dumps(first.json["tools"]) and second.json["messages"][-1]["role"] == "tool"
    assert setup.search.requests[-1].path.startswith("/search?")
    # Another gateway's answer and this one's are the same bytes for the judge.
    assert not setup.search.requests[-1].header("authorization")


async def test_a_client_searches_by_itself(setup: Setup) -> None:
    """As Codex does for a function of its own; no model is called."""
    setup.search.requests.clear()
    setup.chat.requests.clear()
    page = answer(200, (("content-type", "text/html"),), [b"<title>Home</title><p>Rain at noon."], framing="length")
    setup.search.default = lambda asked: page if asked.path == "/page" else _found("https://a.example/1")
    commands = {"search_query": [{"q": "rain"}], "open": [{"ref_id": setup.search.url("/page")}]}
    got = await post(
        setup.gateway.base_url + "/alpha/search",
        {"id": "thread", "model": "demo-model", "commands": commands, "settings": {"external_web_access": True}},
        {"authorization": "Bearer alice"},
    )
    told = json.loads(got.body)
    assert got.status == 200 and [hit["url"] for hit in told["results"]] == ["https://a.example/1"]
    assert "It rains." in told["output"] and "L1: Rain at noon." in told["output"]
    assert {asked.path.partition("?")[0] for asked in setup.search.requests} == {"/search", "/page"}
    assert not setup.chat.requests


async def test_a_page_is_read_and_a_private_one_is_not(setup: Setup) -> None:
    page = answer(200, (("content-type", "text/html"),), [b"<title>Home</title><p>Rain at noon."], framing="length")
    setup.search.script(page)
    private = {"url": "http://169.254.169.254/latest/meta-data"}
    setup.turns(_calls("open_page", {"url": setup.search.url("/page")}, private), text_stream("Noon【1】."))
    got = await post(
        setup.gateway.base_url + "/responses",
        {"model": "demo-model", "input": "Read", "tools": [SEARCH], "stream": True},
        {"authorization": "Bearer alice"},
    )
    final = check_stream(parse_sse(got.body))
    opened, refused, message = final["output"]
    assert opened["status"] == "completed" and opened["action"]["type"] == "open_page"
    assert refused["status"] == "failed"
    told = [one["content"] for one in setup.chat.requests[-1].json["messages"] if one["role"] == "tool"]
    assert "Rain at noon." in told[0] and "meta-data" not in told[1]
    assert message["content"][0]["annotations"][0]["title"] == "Home"


async def test_a_search_that_is_down_is_told_to_the_model(setup: Setup) -> None:
    setup.search.script(json_answer({}, 500))
    setup.turns(_calls("web_search", {"query": "x"}), text_stream("I cannot search."))
    async with setup.client() as client:
        final: Any = await client.responses.create(model="demo-model", input="Rain?", tools=[SEARCH])
    assert final.status == "completed" and final.output[0].status == "failed"


async def test_an_mcp_call_and_its_approval(setup: Setup) -> None:
    setup.turns(_calls("dice__roll", {"sides": 6}))
    async with setup.client() as client, setup.client("bob") as stranger:
        asked: Any = await client.responses.create(model="demo-model", input="Roll!", tools=[DICE])
        assert [item.type for item in asked.output] == ["mcp_list_tools", "mcp_approval_request"]
        assert asked.tools[0].headers is None
        request = asked.output[1]
        assert (request.name, request.server_label) == ("roll", "dice")
        answered = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
        given: dict[str, Any] = {
            "model": "demo-model",
            "input": [answered],
            "tools": [DICE],
            "previous_response_id": asked.id,
        }
        with pytest.raises(openai.BadRequestError):
            await stranger.responses.create(**given)
        setup.turns(text_stream("A four."))
        done: Any = await client.responses.create(**given)
    assert [item.type for item in done.output] == ["mcp_call", "message"]
    call = done.output[0]
    assert (call.status, call.output, call.approval_request_id) == ("completed", "rolled one of 6", request.id)
    told = setup.chat.requests[-1].json["messages"][-1]["content"]
    assert told == "rolled one of 6"


async def test_several_calls_of_one_turn_beside_a_failure(setup: Setup) -> None:
    setup.turns(
        [*_calls("dice__roll", {"sides": 4}, {"sides": "many"})],
        text_stream("One of them."),
    )
    got = await post(
        setup.gateway.base_url + "/responses",
        {
            "model": "demo-model",
            "input": "Roll!",
            "tools": [{**DICE, "require_approval": "never", "allowed_tools": ["roll"]}],
            "stream": True,
        },
        {"authorization": "Bearer alice"},
    )
    final = check_stream(parse_sse(got.body))
    listed, good, bad, message = final["output"]
    assert [tool["name"] for tool in listed["tools"]] == ["roll"]
    assert (good["status"], bad["status"]) == ("completed", "failed") and bad["error"]
    assert message["content"][0]["text"] == "One of them."


async def test_servers_that_nobody_allowed_are_refused(setup: Setup) -> None:
    declared: Any = {"type": "mcp", "server_label": "x", "server_url": "https://mcp.example.com/mcp"}
    async with setup.client() as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="demo-model", input="x", tools=[declared])
    assert refused.value.param == "tools[0].server_url"


async def test_tools_in_the_background(setup: Setup) -> None:
    setup.search.script(_found("https://a.example/1"))
    setup.turns(_calls("web_search", {"query": "rain"}), _calls("dice__roll", {"sides": 6}), text_stream("Rain【1】."))
    tools = [SEARCH, {**DICE, "require_approval": "never"}]
    asked = {"model": "demo-model", "input": "Rain?", "tools": tools, "stream": True, "background": True}
    got = await post(setup.gateway.base_url + "/responses", asked)
    final = check_stream(parse_sse(got.body))
    kinds = [item["type"] for item in final["output"]]
    assert kinds == ["mcp_list_tools", "web_search_call", "mcp_call", "message"] and final["status"] == "completed"
    assert len(setup.chat.requests) == 3
    async with aiohttp.ClientSession() as session:
        url = f"{setup.gateway.base_url}/responses/{final['id']}"
        async with session.get(url) as stored, session.get(f"{url}?stream=true") as again:
            assert await stored.json() == final and await again.read() == got.body
