"""Hosted calls in odd forms: what a model, a client or a tool may write, and what may not be written any more.

The usual way of a call is in `test_tool_loop.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from antiphon.config.tools import ToolSettings
from antiphon.engine.ports.actions import Chain, Context, PrepareTools, RequestHead, StoredItem
from antiphon.engine.ports.hosted_tools import HostedCall, ToolResult
from antiphon.types.file_kinds import FetchedFile
from tests.support.exchanges import make_exchange
from tests.support.hosted_tools import ScriptedTools
from tests.unit.engine.test_tool_loop import CODE, DICE, SEARCH, Talk

SEARCH_THE_WEB = {"type": "web_search"}


@pytest.mark.parametrize("asked", [True, False])
def test_a_search_of_the_web_shows_its_sources_only_where_they_are_asked_for(asked: bool) -> None:
    action = {"type": "search", "query": "rain", "sources": [{"type": "url", "url": "https://a.example"}]}

    def found(call: HostedCall) -> ToolResult:
        return ToolResult(call.call_id, "It rains.", {"action": action})

    request = {
        "stream": True,
        "tools": [SEARCH_THE_WEB],
        "include": ["web_search_call.action.sources"] if asked else [],
    }
    talk = Talk(request, [("", ("web_search", {"query": "rain"})), ("Yes.",)], ScriptedTools(found))
    call = talk.final["output"][0]
    assert (call["type"], call["status"]) == ("web_search_call", "completed")
    shown = {name: value for name, value in action.items() if asked or name != "sources"}
    assert call["action"] == shown
    events = [event["type"].removeprefix("response.web_search_call.") for event in talk.events]
    assert [kind for kind in events if kind in ("in_progress", "searching", "completed")] == [
        "in_progress",
        "searching",
        "completed",
    ]
    added = talk.events[2]["item"]
    assert added["status"] == "in_progress" and "action" not in added


@pytest.mark.parametrize(("arguments", "code"), [("print(1)", "print(1)"), ('{"code":5}', '{"code":5}'), ("{}", "")])
def test_code_that_is_not_in_its_place_is_shown_as_the_model_wrote_it(arguments: str, code: str) -> None:
    turns = [("", ("code_interpreter", arguments)), ("Done.",)]
    talk = Talk({"stream": True, "tools": [CODE]}, turns)
    assert talk.final["output"][0]["code"] == code
    assert talk.tools.calls[0].arguments == arguments
    deltas = [event["delta"] for event in talk.events if event["type"] == "response.code_interpreter_call_code.delta"]
    assert deltas == ([code] if code else [])


def test_an_mcp_call_without_arguments_has_no_delta_of_any() -> None:
    turns = [("", ("dice__roll", "")), ("Six.",)]
    talk = Talk({"stream": True, "tools": [{**DICE, "require_approval": "never"}]}, turns)
    kinds = [event["type"] for event in talk.events]
    assert "response.mcp_call_arguments.delta" not in kinds and "response.mcp_call_arguments.done" in kinds


def _ran(**item: Any) -> dict[str, Any]:
    return {"type": "code_interpreter_call", "id": "ci_1", "code": "1", "outputs": [], **item}


@pytest.mark.parametrize(
    ("items", "earlier"),
    [
        ([], None),
        ([_ran(container_id="cntr_a")], "cntr_a"),
        ([_ran(container_id="cntr_a"), _ran(id="ci_2", container_id="cntr_b")], "cntr_b"),
        ([_ran(container_id="cntr_a"), {"role": "user", "content": "More."}], "cntr_a"),
        ([_ran(container_id=None)], None),
        ([_ran(container_id=5)], None),
        ([_ran(container_id="cntr_a"), _ran(id="ci_2", container_id=5)], None),
    ],
)
def test_code_goes_on_in_the_container_of_the_conversation(items: list[dict[str, Any]], earlier: str | None) -> None:
    exchange = make_exchange(tool_types=ScriptedTools.types)
    body = json.dumps({"model": "m", "input": [*items, {"role": "user", "content": "Go on."}], "tools": [CODE]})
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body.encode())
    (preparing,) = exchange.actions()
    assert isinstance(preparing, PrepareTools)
    assert [tool.earlier for tool in preparing.tools] == [earlier]


def test_an_approved_call_of_a_tool_that_is_not_there_never_runs() -> None:
    asked, answer = _APPROVED
    talk = Talk({"tools": [DICE], "input": [{**asked, "name": "toss"}, answer]}, [("Sorry.",)])
    assert not talk.tools.calls and talk.final["status"] == "completed"
    assert talk.messages()[-1]["content"] == "This tool does not exist."


@pytest.mark.parametrize("odd", [{"server_label": 5}, {"arguments": {}}, {"name": None}, {"server_label": "cards"}])
def test_an_approved_call_of_a_server_that_is_not_there_is_refused(odd: dict[str, Any]) -> None:
    """The request came from the client: it may name anything, or nothing that can be read."""
    asked, answer = _APPROVED
    talk = Talk({"tools": [DICE], "input": [{**asked, **odd}, answer]}, [])
    error = talk.outcome.json["error"]
    assert not talk.tools.calls and not talk.outcome.calls
    assert (error["param"], error["code"]) == ("tools", "invalid_value")
    assert f"the MCP server '{odd.get('server_label', '') if odd.get('server_label') != 5 else ''}'" in error["message"]


@pytest.mark.parametrize(
    "tools",
    [[], [SEARCH], [{"type": "mcp", "server_label": "cards", "server_url": "https://c.example"}]],
    ids=["none", "others", "label"],
)
@pytest.mark.parametrize("more", [{}, {"stream": True}, {"background": True}], ids=["json", "stream", "background"])
@pytest.mark.parametrize("way", ["input", "chain", "conversation"])
def test_an_approval_without_its_server_is_never_lost(
    tools: list[dict[str, Any]], more: dict[str, Any], way: str
) -> None:
    asked, answer = _APPROVED
    stored = (StoredItem("mcpr_1", "mcp_approval_request", json.dumps(asked).encode()),)
    named: dict[str, Any] = {"input": [asked, answer]}
    context = Context()
    if way == "chain":
        named, context = {"input": [answer], "previous_response_id": "resp_1"}, Context(chain=Chain(stored))
    elif way == "conversation":
        named, context = {"input": [answer], "conversation": "conv_1"}, Context(conversation=stored)
    talk = Talk({"tools": tools, **named, **more}, [], context=context)
    error = talk.outcome.json["error"]
    assert talk.outcome.head is not None and talk.outcome.head.status == 400 and not talk.outcome.calls
    assert error["param"] == "tools" and "the MCP server 'dice'" in error["message"]


def test_an_approval_that_the_model_has_gone_on_from_is_no_news() -> None:
    asked, answer = _APPROVED
    gone_on = [asked, answer, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]
    talk = Talk({"input": gone_on}, [("Yes.",)])
    assert talk.final["status"] == "completed"


def test_all_turns_of_a_response_share_what_it_may_write() -> None:
    turns = [("", ("file_search", {"query": "a"})), ("Done.",)]
    talk = Talk({"tools": [SEARCH], "max_output_tokens": 100}, turns)
    assert [json.loads(call.request.body)["max_tokens"] for call in talk.outcome.calls] == [100, 95]
    assert talk.final["max_output_tokens"] == 100


@pytest.mark.parametrize("stream", [True, False])
def test_when_nothing_may_be_written_any_more_the_response_ends_after_its_tools(stream: bool) -> None:
    """Each turn costs five tokens: what the last call found is shown, and nobody is asked what it means."""
    searches: list[tuple[Any, ...]] = [("", ("file_search", {"query": each})) for each in "abcd"]
    talk = Talk({"tools": [SEARCH], "max_output_tokens": 16, "stream": stream}, searches)
    assert [json.loads(call.request.body)["max_tokens"] for call in talk.outcome.calls] == [16, 11, 6, 1]
    assert talk.final["status"] == "incomplete" and talk.kinds == ["file_search_call"] * 4
    assert talk.final["incomplete_details"] == {"reason": "max_output_tokens"}
    assert talk.outcome.records[0].status == "incomplete" and talk.exchange.done


_ASKED = {"type": "mcp_approval_request", "id": "mcpr_1", "name": "roll", "server_label": "dice", "arguments": "{}"}
_APPROVED: list[dict[str, Any]] = [
    _ASKED,
    {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
]


def test_files_are_fetched_after_the_calls_that_the_client_approved() -> None:
    url = "https://files.example/a.txt"
    file = {"role": "user", "content": [{"type": "input_file", "file_url": url}]}
    context = Context(files={url: FetchedFile("a.txt", "text/plain", b"the text")})
    talk = Talk({"tools": [DICE], "input": [file, *_APPROVED]}, [("Done.",)], context=context)
    assert len(talk.tools.calls) == 1 and [load.file_urls for load in talk.outcome.loads] == [(), (url,)]
    assert "the text" in json.dumps(talk.messages()[0]) and talk.final["status"] == "completed"


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_wrong_with_the_rest_is_told_after_the_calls_that_the_client_approved(stream: bool) -> None:
    """They are what the client has been waiting for; the model is not asked then."""
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    items = [*_APPROVED, {"role": "user", "content": [image]}]
    talk = Talk({"tools": [DICE], "input": items, "stream": stream}, [], profile="deepseek")
    assert len(talk.tools.calls) == 1 and not talk.outcome.calls and talk.exchange.done
    if stream:
        assert talk.final["status"] == "failed" and "images" in talk.final["error"]["message"]
        assert talk.kinds == ["mcp_list_tools", "mcp_call"]
    else:
        assert talk.outcome.head is not None and talk.outcome.head.status == 400
        assert talk.outcome.json["error"]["param"] == "input[2].content[0]"


@pytest.mark.parametrize("beside", [{}, {"bytes": b"x"}], ids=["", "and bytes"])
def test_results_that_are_raw_json_count_by_their_bytes(beside: dict[str, bytes]) -> None:
    def found(call: HostedCall) -> ToolResult:
        hit = {"file_id": "file-1", "filename": "a", "score": 1.0, "text": "x" * 600, "attributes": {}}
        return ToolResult(call.call_id, "x", {"queries": ["a"], "results": [Raw(json.dumps(hit).encode())], **beside})

    searches = [("file_search", {"query": each}) for each in "ab"]
    room = ToolSettings.model_construct(result_bytes=1000)
    request = {"tools": [SEARCH], "include": ["file_search_call.results"]}
    talk = Talk(request, [("", *searches), ("Done.",)], ScriptedTools(found), tool_limits=room)
    calls = talk.final["output"][:-1]
    assert sorted(call["status"] for call in calls) == ["completed", "failed"]
    (shown,) = [call["results"] for call in calls if call["status"] == "completed"]
    assert shown[0]["text"] == "x" * 600


def test_an_approval_that_another_response_has_used_is_refused() -> None:
    context = Context(answered={"mcpr_1": "resp_other"})
    talk = Talk({"input": [{"role": "user", "content": "hi"}, *_APPROVED], "tools": [DICE]}, [], context=context)
    error = talk.outcome.json["error"]
    assert (error["code"], error["param"]) == ("approval_already_answered", "input[2].approval_request_id")
    assert "resp_other" in error["message"] and not talk.tools.calls
