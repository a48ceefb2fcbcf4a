"""Part F, Codex: what it sends and what it needs, compaction and WebSocket included."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.exchange.response_exchange import COMPACT_PATH
from antiphon.engine.ports.actions import RequestHead
from antiphon.sealing import Sealer
from antiphon.translation.profiles import PROFILES
from tests.pitfalls.asking import FUNCTION, call, chunk, error, final, sse
from tests.support.chat_server import answer, completion, json_answer, text_stream
from tests.support.exchanges import Outcome, make_exchange, pump, run
from tests.support.http_door import OpenHttpDoor, open_http_door, post_bytes
from tests.support.judge import check_stream, parse_sse
from tests.support.strict_chat import check_chat_request

REQUESTS = Path(__file__).parent.parent / "client_requests"
ASK = {"model": "demo-model", "input": "hi"}
USER = {"role": "user", "content": "hi"}
CASES = ["text", "shell_tool", "parallel_tools", "apply_patch", "code_mode", "mcp_namespace", "reasoning", "image"]


def _sent(case: str) -> list[dict[str, Any]]:
    requests = json.loads((REQUESTS / f"codex_cli-{case}.json").read_text())["requests"]
    return [one["json"] for one in requests if one["method"] == "POST" and one["path"].endswith("/responses")]


def _answer(request: dict[str, Any], *chunks: dict[str, Any], finish: str = "stop") -> Outcome:
    outcome = run(request, [sse(*chunks, chunk(finish))], sealer=Sealer([b"key"]))
    assert outcome.head is not None and outcome.head.status == 200, outcome.body[:500]
    check_chat_request(outcome.chat)
    return outcome


@asynccontextmanager
async def _door() -> AsyncIterator[OpenHttpDoor]:
    async with open_http_door(sealer=Sealer([b"key"]), request_body_bytes=8 << 20) as door:
        door.chat.default = lambda request: (
            answer(parts=text_stream("A summary."))
            if request.json.get("stream")
            else json_answer(completion("A summary."))
        )
        yield door


@pytest.mark.parametrize("more", [{}, {"stream": True, "store": False, "tools": [], "parallel_tool_calls": True}])
async def test_pitfall_110_a_large_conversation_is_compacted(more: dict[str, Any]) -> None:
    body = {"model": "demo-model", "input": [{"role": "user", "content": "x" * 1_800_000}], **more}
    async with _door() as door:
        got = await door.ask(post_bytes(body, path="/v1/responses/compact"))
        assert got.status == 200 and got.json["object"] == "response.compaction"
        (call,) = door.chat.requests
        # The model is asked for the summary and for nothing else.
        assert "tools" not in call.json and len(call.body) > 1_800_000
        carried = [item for item in got.json["output"] if item["type"] == "compaction"]
        assert len(carried) == 1 and carried[0]["encrypted_content"]
        again = await door.ask(post_bytes({**ASK, "input": [*got.json["output"], USER]}))
    assert again.status == 200 and "A summary." in json.dumps(door.chat.requests[-1].json)


@pytest.mark.parametrize("stream", [True, False])
async def test_pitfall_111_a_trigger_gives_exactly_one_compaction(stream: bool) -> None:
    items = [USER, {"role": "assistant", "content": "hello"}, {"type": "compaction_trigger"}]
    async with _door() as door:
        got = await door.ask(post_bytes({**ASK, "input": items, "stream": stream, "store": False}))
    response = got.events[-1]["response"] if stream else got.json
    assert [item["type"] for item in response["output"]] == ["compaction"]
    assert response["status"] == "completed" and "compaction_trigger" not in json.dumps(door.chat.requests[-1].json)


@pytest.mark.parametrize("trigger", [True, False])
def test_pitfall_112_a_compaction_goes_where_the_model_goes(trigger: bool) -> None:
    theirs = ModelRoute(PROFILES["groq"], upstream="theirs", model="their-name")
    routes = ModelRoutes(ModelRoute(PROFILES["generic"]), (ModelRule("theirs-*", theirs),))
    items = [USER, {"type": "compaction_trigger"}] if trigger else [USER]
    exchange, outcome = make_exchange(routes=routes, sealer=Sealer([b"key"])), Outcome()
    path = "/v1/responses" if trigger else COMPACT_PATH
    body = json.dumps({"model": "theirs-1", "input": items}).encode()
    exchange.receive_request(RequestHead("POST", path, (), "owner"), body)
    pump(exchange, outcome)
    (made,) = outcome.calls
    assert made.request.upstream == "theirs" and outcome.chat["model"] == "their-name"


@pytest.mark.parametrize("case", CASES)
def test_pitfall_113_every_turn_of_codex_is_one_for_a_chat_server(case: str) -> None:
    requests = [request for request in _sent(case) if not _carries_a_foreign_seal(request)]
    assert requests
    for request in requests:
        outcome = _answer(request, chunk(reasoning_content="hm"), chunk(content="done"))
        events = parse_sse(outcome.body)
        response = check_stream(events)
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        # Codex takes everything from these; reasoning is shown from its summary, and carried sealed.
        assert [item["type"] for item in done] == ["reasoning", "message"]
        assert done[0]["encrypted_content"] and done[1]["content"][0]["text"] == "done"
        if (request.get("reasoning") or {}).get("summary"):
            assert done[0]["summary"][0]["text"] == "hm"
        assert events[-1]["type"] == "response.completed" and response["id"].startswith("resp_")
        assert not outcome.records, "Codex stores nothing here"


def _carries_a_foreign_seal(request: dict[str, Any]) -> bool:
    return any(item.get("encrypted_content") for item in request["input"])


def test_pitfall_113_a_tool_of_codex_is_called_in_its_own_form() -> None:
    request = _sent("mcp_namespace")[0]
    space = next(tool for tool in request["tools"] if tool["type"] == "namespace" and tool["name"].startswith("mcp__"))
    name = f"{space['name']}__{space['tools'][0]['name']}"
    outcome = _answer(request, call("{}", name, id="call_a", index=0), finish="tool_calls")
    (item,) = final(outcome)["output"]
    assert (item["type"], item["namespace"], item["name"]) == (
        "function_call",
        space["name"],
        space["tools"][0]["name"],
    )


def test_pitfall_113_tools_that_an_item_brings_are_offered_and_called() -> None:
    request = _sent("code_mode")[0]
    assert not request.get("tools")
    brought = next(item for item in request["input"] if item["type"] == "additional_tools")["tools"]
    space = next(tool for tool in brought if any(inner["name"] == "exec" for inner in tool["tools"]))
    name = f"{space['name']}__exec"
    arguments = json.dumps({"input": "await tools.x()"})
    outcome = _answer(request, call(arguments, name, id="call_a", index=0), finish="tool_calls")
    assert name in {tool["function"]["name"] for tool in outcome.chat["tools"]}
    (item,) = final(outcome)["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "exec", "await tools.x()")


def test_pitfall_113_what_codex_offers_and_nobody_can_run_fails_nothing() -> None:
    request = _sent("web_search_tool_tolerated")[0]
    outcome = _answer(request, chunk(content="x"))
    assert {tool["type"] for tool in outcome.chat["tools"]} == {"function"}
    assert outcome.head is not None and "tools.web_search" in dict(outcome.head.headers)["antiphon-ignored"]


async def test_pitfall_114_the_list_of_models_has_codex_own_field() -> None:
    async with open_http_door() as door:
        answer = await door.ask(post_bytes(method="GET", path="/v1/models?client_version=0.169.0"))
    assert answer.status == 200 and answer.json["models"] == [] and answer.json["data"]


@pytest.mark.parametrize("empty", [[], "", None])
def test_pitfall_114_a_probe_without_input_gets_openais_answer_and_no_call_is_made(empty: Any) -> None:
    assert error(input=empty, max_output_tokens=16)["param"] == "input"
    found = error(input="x", max_output_tokens=1)
    assert found["param"] == "max_output_tokens" and "16" in found["message"]


def test_pitfall_114_a_freeform_tool_is_there_in_every_turn() -> None:
    for request in _sent("apply_patch"):
        names = {tool["function"]["name"] for tool in _answer(request, chunk(content="x")).chat["tools"]}
        assert "apply_patch" in names and FUNCTION["name"] not in names


def _first_frames() -> list[Any]:
    """What Codex warms a connection up with: its developer message; of the models with tools in an item, these."""
    frames = []
    for case in ("websocket", "extra-openai-provider-websocket", "extra-websocket-tool-loop"):
        requests = json.loads((REQUESTS / f"codex_cli-{case}.json").read_text())["requests"]
        frames.append(pytest.param(requests[0]["frames"][0], id=case))
    tools = {"type": "additional_tools", "role": "developer", "tools": [{"type": "custom", "name": "exec"}]}
    frame = {"type": "response.create", "input": [tools], "generate": False, "store": False, "stream": True}
    return [*frames, pytest.param(frame, id="tools alone")]


@pytest.mark.parametrize("frame", _first_frames())
async def test_pitfall_115_a_prewarm_is_answered_here(frame: dict[str, Any]) -> None:
    async with _door() as door, aiohttp.ClientSession() as session:
        async with session.ws_connect(door.base_url + "/responses") as socket:
            assert frame["generate"] is False
            await socket.send_json({**frame, "model": "demo-model"})
            events = [await socket.receive_json(timeout=10) for _ in range(3)]
            kinds = [event["type"] for event in events]
            assert kinds == ["response.created", "response.in_progress", "response.completed"]
            assert not door.chat.requests
            more = {"model": "demo-model", "input": "hi", "previous_response_id": events[-1]["response"]["id"]}
            await socket.send_json({"type": "response.create", **more, "store": False})
            while (await socket.receive_json(timeout=10))["type"] != "response.completed":
                pass
        assert len(door.chat.requests) == 1
