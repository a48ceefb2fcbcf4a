"""Part F, Codex: what it sends and what it needs, over HTTP. Compaction and WebSocket come with the state work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from antiphon.sealing import Sealer
from tests.pitfalls.asking import FUNCTION, call, chunk, error, final, sse
from tests.support.exchanges import Outcome, run
from tests.support.http_door import open_http_door, post_bytes
from tests.support.judge import check_stream, parse_sse
from tests.support.strict_chat import check_chat_request

REQUESTS = Path(__file__).parent.parent / "client_requests"
CASES = ["text", "shell_tool", "parallel_tools", "apply_patch", "code_mode", "mcp_namespace", "reasoning", "image"]


def _sent(case: str) -> list[dict[str, Any]]:
    requests = json.loads((REQUESTS / f"codex_cli-{case}.json").read_text())["requests"]
    return [one["json"] for one in requests if one["method"] == "POST" and one["path"].endswith("/responses")]


def _answer(request: dict[str, Any], *chunks: dict[str, Any], finish: str = "stop") -> Outcome:
    outcome = run(request, [sse(*chunks, chunk(finish))], sealer=Sealer([b"key"]))
    assert outcome.head is not None and outcome.head.status == 200, outcome.body[:500]
    check_chat_request(outcome.chat)
    return outcome


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
