"""Tools that run here, in real doors: turns over real connections, heartbeats, clients that leave, driving."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from antiphon.config.tools import ToolSettings
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.errors import ApiError, InvalidRequest
from antiphon.tools.box import Toolbox
from antiphon.tools.tool_search import ToolSearch
from antiphon.translation.events.encode import KEEPALIVE
from tests.support.chat_server import DEADLINE, answer, chunk, completion, event, json_answer, text_stream
from tests.support.extproc_door import open_door, request_body, sse_events
from tests.support.hosted_tools import ScriptedTools
from tests.support.http_door import open_http_door, post_bytes
from tests.support.judge import check_response, check_stream, parse_sse

SEARCH: dict[str, Any] = {"type": "file_search", "vector_store_ids": ["vs_1"]}
_SEARCHED: dict[str, Any] = {"index": 0, "id": "call_0", "type": "function"}
ASK: dict[str, Any] = {"model": "demo-model", "input": "Hi", "tools": [SEARCH]}


def _call(*queries: str) -> list[bytes]:
    calls = [
        {
            "index": number,
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": "file_search", "arguments": json.dumps({"query": query})},
        }
        for number, query in enumerate(queries)
    ]
    end = event(chunk(finish_reason="tool_calls"))
    return [*(event(chunk({"tool_calls": [call]})) for call in calls), end, b"data: [DONE]\n\n"]


class SlowTools(ScriptedTools):
    """Every call waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def run(self, call: HostedCall) -> ToolResult:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return self.run_now(call)


class PickyTools(ScriptedTools):
    async def prepare(
        self, owner: str, response_id: str, tools: tuple[HostedTool, ...]
    ) -> tuple[PreparedTool, ...] | ApiError:
        return InvalidRequest("There is no such store.", param="tools[0]", code="not_found")


async def test_a_stream_with_a_search_in_it() -> None:
    async with open_http_door(tools=ScriptedTools()) as door:
        door.chat.script(answer(parts=_call("rain")), answer(parts=text_stream("It rains.")))
        got = await door.ask(post_bytes({**ASK, "stream": True}))
        final = check_stream(parse_sse(got.body))
        assert [item["type"] for item in final["output"]] == ["file_search_call", "message"]
        again = await door.ask(post_bytes(method="GET", path=f"/v1/responses/{final['id']}"))
        assert again.json == final
        first, second = door.chat.requests
        assert second.json["messages"][-1]["role"] == "tool" and len(first.json["messages"]) == 1


async def test_a_json_answer_with_a_search_in_it() -> None:
    async with open_http_door(tools=ScriptedTools()) as door:
        call = {"id": "call_0", "type": "function", "function": {"name": "file_search", "arguments": "{}"}}
        door.chat.script(json_answer(completion("", tool_calls=[call])), json_answer(completion("It rains.")))
        got = await door.ask(post_bytes(ASK))
        check_response(got.json)
        assert [item["type"] for item in got.json["output"]] == ["file_search_call", "message"]


async def test_a_refused_declaration_is_a_400_and_no_model_is_called() -> None:
    async with open_http_door(tools=PickyTools()) as door:
        got = await door.ask(post_bytes({**ASK, "stream": True}))
        assert got.status == 400 and got.error["param"] == "tools[0]" and not door.chat.requests


async def test_the_client_hears_something_while_a_tool_runs() -> None:
    tools = SlowTools()
    async with open_http_door(tools=tools, keepalive=0.01) as door:
        door.chat.script(answer(parts=_call("rain")), answer(parts=text_stream("It rains.")))
        async with door.client() as client:
            await client.send(post_bytes({**ASK, "stream": True}))
            await client.head()
            seen = b""
            # On a machine that is busy one may come before the tool runs.
            while b"file_search_call.searching" not in seen or not seen.endswith(KEEPALIVE):
                seen += await client.part()
            assert b"file_search_call.completed" not in seen
            tools.go.set()
            while b"[DONE]" not in seen:
                seen += await client.part()
        check_stream(parse_sse(seen))


async def test_a_client_that_leaves_ends_the_tool_and_leaves_a_failed_response() -> None:
    tools = SlowTools()
    async with open_http_door(tools=tools) as door:
        door.chat.script(answer(parts=_call("rain", "snow")))
        async with door.client() as client:
            await client.send(post_bytes({**ASK, "stream": True}))
            await asyncio.wait_for(tools.started.wait(), DEADLINE)
        await asyncio.wait_for(tools.cancelled.wait(), DEADLINE)
        record = door.store.records[await door.stored("failed")]
        # Both calls were begun: each has its item.
        assert [json.loads(item.body)["status"] for item in record.output_items] == ["incomplete", "incomplete"]


async def test_behind_envoy_it_is_driven_without_being_asked(tmp_path: Path) -> None:
    async with open_door(tmp_path, mode="auto", tools=ScriptedTools()) as opened:
        opened.chat.script(answer(parts=_call("rain")), answer(parts=text_stream("It rains.")))
        stream = opened.stream()
        await stream.request(request_body(stream=True, tools=[SEARCH]))
        client = await stream.complete()
        assert (client.status, client.how) == (200, "local")
        assert "response.file_search_call.completed" in sse_events(client.body)
        final = check_stream(parse_sse(client.body))
        assert [item["type"] for item in final["output"]] == ["file_search_call", "message"]


async def test_a_search_for_tools_in_every_door() -> None:
    tool = {"type": "function", "name": "get_rate", "description": "A rate.", "parameters": {}, "defer_loading": True}
    body = {**ASK, "tools": [{"type": "tool_search"}, tool], "stream": True}
    searched = [
        event(
            chunk({"tool_calls": [{**_SEARCHED, "function": {"name": "tool_search", "arguments": '{"query":"rate"}'}}]})
        ),
        event(chunk(finish_reason="tool_calls")),
        b"data: [DONE]\n\n",
    ]
    called = [
        event(chunk({"tool_calls": [{**_SEARCHED, "function": {"name": "get_rate", "arguments": "{}"}}]})),
        event(chunk(finish_reason="tool_calls")),
        b"data: [DONE]\n\n",
    ]
    kinds = ["tool_search_call", "tool_search_output", "function_call"]
    async with open_http_door(tools=Toolbox([ToolSearch()], ToolSettings())) as door:
        door.chat.script(answer(parts=searched), answer(parts=called))
        final = check_stream(parse_sse((await door.ask(post_bytes(body))).body))
        assert [item["type"] for item in final["output"]] == kinds
        # What was loaded stays for who continues, though nothing searches any more.
        output = {"type": "function_call_output", "call_id": final["output"][-1]["call_id"], "output": "0.92"}
        later = {**body, "input": [output], "previous_response_id": final["id"], "stream": False}
        door.chat.script(json_answer(completion("0.92")))
        assert (await door.ask(post_bytes(later))).status == 200
        shown = [[one["function"]["name"] for one in asked.json["tools"]] for asked in door.chat.requests]
        assert shown == [["tool_search"], ["tool_search", "get_rate"], ["tool_search", "get_rate"]]
