"""Tools that run here, in the stream: their items and events, the turns between them, limits, approvals, citations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.config.tools import ToolSettings
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CancelReason, Chain, Context, RequestHead, RunTools
from antiphon.engine.ports.hosted_tools import HostedCall, ToolResult
from antiphon.errors import InvalidRequest, StoreError
from antiphon.translation.events.citations import Source, unmarked
from tests.support.exchanges import JSON, SSE, Outcome, make_exchange
from tests.support.exchanges import pump as pump_exchange
from tests.support.hosted_tools import ScriptedTools
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.model_turns import model_turn
from tests.support.strict_chat import check_chat_request

SEARCH = {"type": "file_search", "vector_store_ids": ["vs_1"]}
CODE = {"type": "code_interpreter", "container": {"type": "auto"}}
DICE = {"type": "mcp", "server_label": "dice", "server_url": "https://d.example", "authorization": "s3cret"}
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 3},
}

Call = tuple[str, dict[str, Any] | str]


def _turn(text: str = "", *calls: Call, stream: bool, pieces: int = 1) -> bytes:
    made = [
        {
            "index": number,
            "id": f"call_{name}_{number}",
            "type": "function",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for number, (name, given) in enumerate(calls)
    ]
    finish = "tool_calls" if calls else "stop"
    if not stream:
        message: dict[str, Any] = {"role": "assistant", "content": text or None, "tool_calls": made or None}
        return json.dumps(
            {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": USAGE}
        ).encode()
    size = max(1, len(text) // pieces)
    deltas: list[dict[str, Any]] = [{"content": text[at : at + size]} for at in range(0, len(text), size)]
    deltas += [{"tool_calls": [call]} for call in made]
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks += [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
        {"choices": [], "usage": USAGE},
    ]
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


class Talk:
    """One request, and the model's turns as they are asked for."""

    def __init__(
        self,
        request: dict[str, Any],
        turns: list[tuple[Any, ...]],
        tools: ScriptedTools | None = None,
        *,
        context: Context | None = None,
        pieces: int = 1,
        **options: Any,
    ) -> None:
        self.tools = tools or ScriptedTools()
        self.outcome = Outcome()
        self.exchange: ResponseExchange = make_exchange(tool_types=self.tools.types, **options)
        body = json.dumps({"model": "m", "input": "hi", **request}).encode()
        self.exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
        self.pump(context)
        for text, *calls in turns:
            assert not self.exchange.done, self.outcome.body
            call = self.outcome.calls[-1]
            check_chat_request(json.loads(call.request.body))
            stream = call.request.stream
            self.exchange.receive_upstream_head(200, SSE if stream else JSON)
            self.pump()
            self.exchange.receive_upstream_data(_turn(text, *calls, stream=stream, pieces=pieces))
            self.pump()
            if not self.exchange.done and self.outcome.calls[-1] is call:
                self.exchange.receive_upstream_end()
                self.pump()

    def pump(self, context: Context | None = None) -> None:
        pump_exchange(self.exchange, self.outcome, context, self.tools)

    def messages(self, call: int = -1) -> list[Any]:
        return list(json.loads(self.outcome.calls[call].request.body)["messages"])

    @property
    def events(self) -> list[dict[str, Any]]:
        events = parse_sse(self.outcome.body)
        check_stream(events)
        return events

    @property
    def final(self) -> Any:
        final = self.events[-1]["response"] if self.exchange.known.streaming else self.outcome.json
        check_response(final)
        return final

    @property
    def kinds(self) -> list[str]:
        return [item["type"] for item in self.final["output"]]


def _found(call: HostedCall) -> ToolResult:
    query = json.loads(call.arguments).get("query", "")
    return ToolResult(call.call_id, f"about {query}", {"queries": [query]})


@pytest.mark.parametrize("stream", [True, False])
def test_a_search_runs_between_two_turns(stream: bool) -> None:
    turns = [("Let me see.", ("file_search", {"query": "rain"})), ("It rains.",)]
    talk = Talk({"stream": stream, "tools": [SEARCH]}, turns, ScriptedTools(_found))
    assert talk.kinds == ["message", "file_search_call", "message"]
    call = talk.final["output"][1]
    assert call["status"] == "completed" and call["queries"] == ["rain"] and call["results"] is None
    assert talk.final["usage"] == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 4},
        "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 6},
        "total_tokens": 30,
    }
    assert [message["role"] for message in talk.messages()] == ["user", "assistant", "tool"]
    assert talk.messages()[1]["content"] == "Let me see." and talk.messages()[2]["content"] == "about rain"
    assert talk.exchange.needs_drive
    (record,) = talk.outcome.records
    assert [item.type for item in record.output_items] == talk.kinds


def test_the_events_of_a_search_are_those_of_the_service() -> None:
    talk = Talk({"stream": True, "tools": [SEARCH]}, [("", ("file_search", {"query": "x"})), ("So.",)])
    types = [event["type"].removeprefix("response.") for event in talk.events]
    assert types[:7] == [
        "created",
        "in_progress",
        "output_item.added",
        "file_search_call.in_progress",
        "file_search_call.searching",
        "file_search_call.completed",
        "output_item.done",
    ]
    added = talk.events[2]["item"]
    assert added["status"] == "in_progress" and added["queries"] == [] and added["results"] is None


def test_code_is_shown_before_it_runs() -> None:
    def ran(call: HostedCall) -> ToolResult:
        return ToolResult(call.call_id, "4", {"outputs": [{"type": "logs", "logs": "4"}]})

    turns = [("", ("code_interpreter", {"code": "print(2+2)"})), ("Four.",)]
    request = {"stream": True, "tools": [CODE], "include": ["code_interpreter_call.outputs"]}
    talk = Talk(request, turns, ScriptedTools(ran))
    types = [event["type"].removeprefix("response.code_interpreter_call") for event in talk.events]
    assert [kind for kind in types if kind.startswith((".", "_code"))] == [
        ".in_progress",
        "_code.delta",
        "_code.done",
        ".interpreting",
        ".completed",
    ]
    call = talk.final["output"][0]
    assert call["code"] == "print(2+2)" and call["container_id"] == "cntr_1" and call["outputs"][0]["logs"] == "4"


def test_calls_of_one_turn_run_together_and_come_out_in_their_order() -> None:
    turns = [("", ("file_search", {"query": "a"}), ("file_search", {"query": "b"})), ("Both.",)]
    talk = Talk({"stream": True, "tools": [SEARCH]}, turns, ScriptedTools(_found))
    assert [call.call_id for call in talk.tools.calls] == ["call_file_search_1", "call_file_search_0"]
    assert [item["queries"] for item in talk.final["output"][:2]] == [["a"], ["b"]]
    told = talk.messages()
    assert [call["id"] for call in told[1]["tool_calls"]] == ["call_file_search_0", "call_file_search_1"]
    assert [message["content"] for message in told[2:]] == ["about a", "about b"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_call_for_the_client_ends_the_response_also_beside_a_hosted_one(stream: bool) -> None:
    client = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    turns: list[tuple[Any, ...]] = [("", ("file_search", {"query": "a"}), ("look", {}))]
    talk = Talk({"stream": stream, "tools": [SEARCH, client]}, turns)
    assert talk.final["status"] == "completed" and sorted(talk.kinds) == ["file_search_call", "function_call"]
    assert len(talk.outcome.calls) == 1


@pytest.mark.parametrize("asked", [True, False])
def test_results_are_shown_only_where_they_are_asked_for(asked: bool) -> None:
    def found(call: HostedCall) -> ToolResult:
        hit = {"file_id": "file-1", "filename": "a", "score": 1.0, "text": "x", "attributes": {}}
        return ToolResult(call.call_id, "x", {"queries": ["a"], "results": [hit]})

    request = {"tools": [SEARCH], "include": ["file_search_call.results"] if asked else []}
    talk = Talk(request, [("", ("file_search", {"query": "a"})), ("So.",)], ScriptedTools(found))
    assert bool(talk.final["output"][0]["results"]) is asked
    assert talk.outcome.head is not None and "antiphon-ignored" not in dict(talk.outcome.head.headers)


def test_a_failure_is_something_the_model_can_read() -> None:
    def broken(call: HostedCall) -> ToolResult:
        return ToolResult(call.call_id, "The search failed: no such store.", {}, failed=True)

    talk = Talk({"tools": [SEARCH]}, [("", ("file_search", {"query": "a"})), ("Sorry.",)], ScriptedTools(broken))
    assert talk.final["output"][0]["status"] == "failed" and talk.final["status"] == "completed"
    assert "no such store" in talk.messages()[-1]["content"]


def test_no_more_calls_run_than_the_request_allows() -> None:
    turns = [("", ("file_search", {"query": "a"}), ("file_search", {"query": "b"})), ("Done.",)]
    talk = Talk({"tools": [SEARCH], "max_tool_calls": 1}, turns)
    assert len(talk.tools.calls) == 1 and talk.kinds == ["file_search_call", "message"]
    assert "limit" in talk.messages()[-1]["content"]
    assert json.loads(talk.outcome.calls[-1].request.body)["tool_choice"] == "none"


def test_the_results_of_all_calls_together_have_a_limit() -> None:
    def large(call: HostedCall) -> ToolResult:
        return ToolResult(call.call_id, "x" * 400, {"queries": ["q" * 100]}, images=("data:," + "i" * 94,))

    searches = [("file_search", {"query": each}) for each in "ab"]
    talk = Talk(
        {"tools": [SEARCH]},
        [("", *searches), ("", searches[0]), ("Done.",)],
        ScriptedTools(large),
        tool_limits=ToolSettings.model_construct(result_bytes=1000),
    )
    statuses = [call["status"] for call in talk.final["output"][:-1]]
    # The first result that came was within the limit.
    assert sorted(statuses) == ["completed", "failed", "failed"] and talk.final["status"] == "completed"
    told = [str(message["content"]) for message in talk.messages() if message["role"] == "tool"]
    assert ["'tools.result_bytes'" in each for each in told] == [status == "failed" for status in statuses]


def test_turns_have_a_limit_and_the_last_one_must_answer() -> None:
    again = ("", ("file_search", {"query": "a"}))
    talk = Talk({"tools": [SEARCH]}, [again, again, ("Enough.",)], tool_limits=ToolSettings(turns=2))
    choices = [json.loads(call.request.body).get("tool_choice") for call in talk.outcome.calls]
    assert choices == [None, None, "none"] and talk.final["status"] == "completed"


def test_a_tool_that_had_to_be_called_need_not_be_called_again() -> None:
    request = {"tools": [SEARCH], "tool_choice": {"type": "file_search"}}
    talk = Talk(request, [("", ("file_search", {"query": "a"})), ("Done.",)])
    first, second = (json.loads(call.request.body)["tool_choice"] for call in talk.outcome.calls)
    assert first == {"type": "function", "function": {"name": "file_search"}} and second == "auto"
    assert talk.final["tool_choice"] == {"type": "file_search"}


def test_what_the_tools_refuse_is_a_400() -> None:
    refusal = InvalidRequest("There is no such store.", param="tools[0].vector_store_ids", code="invalid_value")
    talk = Talk({"tools": [SEARCH]}, [], ScriptedTools(refuses=refusal))
    assert talk.outcome.head is not None and talk.outcome.head.status == 400
    assert talk.outcome.json["error"]["param"] == "tools[0].vector_store_ids" and not talk.outcome.calls


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_refuses_the_first_turn_is_an_error_and_no_stream(stream: bool) -> None:
    talk = Talk({"stream": stream, "tools": [SEARCH]}, [])
    talk.exchange.receive_upstream_head(429, JSON)
    talk.exchange.receive_upstream_end()
    talk.pump()
    assert talk.outcome.head is not None and talk.outcome.head.status == 429
    assert talk.outcome.json["error"]["type"] == "rate_limit_error"


def test_a_hosted_tool_may_be_declared_once() -> None:
    talk = Talk({"tools": [SEARCH, SEARCH]}, [])
    assert talk.outcome.head is not None and talk.outcome.head.status == 400


def test_an_upstream_that_fails_in_a_later_turn_fails_the_response_and_keeps_what_was_done() -> None:
    talk = Talk({"stream": True, "tools": [SEARCH]}, [("", ("file_search", {"query": "a"}))])
    talk.exchange.receive_upstream_head(500, JSON)
    talk.exchange.receive_upstream_end()
    talk.pump()
    assert talk.final["status"] == "failed" and talk.kinds == ["file_search_call"]
    assert talk.outcome.records[0].status == "failed"


def test_a_client_that_leaves_while_a_tool_runs_leaves_a_failed_response() -> None:
    talk = Talk({"stream": True, "tools": [SEARCH]}, [])
    talk.exchange.receive_upstream_head(200, SSE)
    talk.pump()
    talk.exchange.receive_upstream_data(_turn("", ("file_search", {"query": "a"}), stream=True))
    while talk.exchange.next_action() is not None:
        pass
    talk.exchange.cancel(CancelReason.CLIENT_GONE)
    talk.pump()
    (record,) = talk.outcome.records
    assert record.status == "failed" and json.loads(record.output_items[0].body)["status"] == "incomplete"


def test_a_picture_that_a_tool_gives_is_shown_to_the_model() -> None:
    def looked(call: HostedCall) -> ToolResult:
        return ToolResult(call.call_id, "a pixel", {}, images=("data:image/png;base64,AAAA",))

    talk = Talk({"tools": [SEARCH]}, [("", ("file_search", {"query": "a"})), ("I see.",)], ScriptedTools(looked))
    told, seen = talk.messages()[-2:]
    assert told["role"] == "tool" and told["content"] == "a pixel"
    assert seen["role"] == "user" and seen["content"][1]["image_url"]["url"] == "data:image/png;base64,AAAA"


def test_a_server_without_images_is_told_of_them_instead() -> None:
    def looked(call: HostedCall) -> ToolResult:
        return ToolResult(call.call_id, "", {}, images=("data:image/png;base64,AAAA",))

    turns = [("", ("file_search", {"query": "a"})), ("Pity.",)]
    talk = Talk({"tools": [SEARCH]}, turns, ScriptedTools(looked), profile="deepseek")
    assert talk.messages()[-1]["role"] == "tool" and "cannot be shown to you" in talk.messages()[-1]["content"]
    assert talk.final["status"] == "completed"


# MCP: lists, approvals, secrets


def test_an_mcp_server_shows_its_tools_first_and_its_calls_are_its_own() -> None:
    def rolled(call: HostedCall) -> ToolResult:
        return ToolResult(call.call_id, "6", {"output": "6"})

    request = {"stream": True, "tools": [{**DICE, "require_approval": "never"}]}
    talk = Talk(request, [("", ("dice__roll", {"sides": 6})), ("Six.",)], ScriptedTools(rolled))
    assert talk.kinds == ["mcp_list_tools", "mcp_call", "message"]
    call = talk.final["output"][1]
    assert (call["server_label"], call["name"], call["output"], call["error"]) == ("dice", "roll", "6", None)
    types = [event["type"] for event in talk.events]
    assert "response.mcp_call_arguments.delta" in types and "response.mcp_list_tools.completed" in types


def test_what_opens_an_mcp_server_is_never_shown_or_stored() -> None:
    talk = Talk({"tools": [{**DICE, "headers": {"x-key": "s3cret"}}]}, [("Hi.",)])
    assert b"s3cret" not in talk.outcome.body and b"s3cret" not in talk.outcome.records[0].body
    assert talk.final["tools"][0]["headers"] is None and "authorization" not in talk.final["tools"][0]


def test_a_call_that_needs_approval_waits_for_the_client_and_runs_in_the_next_response() -> None:
    talk = Talk({"tools": [DICE]}, [("", ("dice__roll", {"sides": 6}))])
    assert talk.kinds == ["mcp_list_tools", "mcp_approval_request"] and not talk.tools.calls
    asked = talk.final["output"][1]
    record = talk.outcome.records[0]
    chain = Context(chain=Chain((*record.input_items, *record.output_items)))
    answer = {"type": "mcp_approval_response", "approval_request_id": asked["id"], "approve": True}
    request = {"tools": [DICE], "input": [answer], "previous_response_id": "resp_1", "stream": True}

    def rolled(call: HostedCall) -> ToolResult:
        return ToolResult(call.call_id, "6", {"output": "6"})

    talk = Talk(request, [("Six.",)], ScriptedTools(rolled), context=chain)
    assert talk.kinds == ["mcp_call", "message"], "the list is known already"
    call = talk.final["output"][0]
    assert call["approval_request_id"] == asked["id"] and call["output"] == "6"
    assert json.loads(talk.tools.calls[0].arguments) == {"sides": 6}
    assert talk.messages()[-1]["content"] == "6"


def test_an_approved_call_stands_beside_the_thoughts_that_led_to_it() -> None:
    """Servers that demand to see the thoughts of a turn's calls refuse a call without, in every later response."""
    turn = model_turn("", ("dice__roll", "{}"), stream=False, reasoning="I roll.")
    talk = Talk({"tools": [DICE]}, [])
    talk.exchange.receive_upstream_head(200, JSON)
    talk.exchange.receive_upstream_data(turn)
    talk.exchange.receive_upstream_end()
    talk.pump()
    record = talk.outcome.records[0]
    asked = talk.final["output"][-1]
    assert [item["type"] for item in talk.final["output"]] == ["mcp_list_tools", "reasoning", "mcp_approval_request"]
    items = (*record.input_items, *record.output_items)
    answer = {"type": "mcp_approval_response", "approval_request_id": asked["id"], "approve": True}
    request = {"tools": [DICE], "input": [answer], "previous_response_id": "resp_1"}
    talk = Talk(request, [("Six.",)], context=Context(chain=Chain(items)))
    told = talk.messages()
    assert [message["role"] for message in told] == ["user", "assistant", "tool"]
    assert told[1]["reasoning_content"] == "I roll." and told[2]["content"] == "nothing"
    record = talk.outcome.records[0]
    items = (*items, *record.input_items, *record.output_items)
    request = {"tools": [DICE], "input": "again", "previous_response_id": "resp_2"}
    told = Talk(request, [("Six.",)], context=Context(chain=Chain(items))).messages()
    assert [message["role"] for message in told] == ["user", "assistant", "tool", "assistant", "user"]


def test_a_call_that_is_not_approved_never_runs() -> None:
    talk = Talk({"tools": [DICE]}, [("", ("dice__roll", {}))])
    record = talk.outcome.records[0]
    chain = Context(chain=Chain((*record.input_items, *record.output_items)))
    asked = talk.final["output"][1]
    answer = {"type": "mcp_approval_response", "approval_request_id": asked["id"], "approve": False, "reason": "no"}
    request = {"tools": [DICE], "input": [answer], "previous_response_id": "resp_1"}
    talk = Talk(request, [("Very well.",)], context=chain)
    assert not talk.tools.calls and talk.kinds == ["message"]


@pytest.mark.parametrize("opening", [{"authorization": "s3cret"}, {"headers": {"x-key": "s3cret"}}])
def test_what_opens_a_server_is_not_kept_for_the_background(opening: dict[str, Any]) -> None:
    declared = {**{key: value for key, value in DICE.items() if key != "authorization"}, **opening}
    talk = Talk({"tools": [declared], "background": True}, [])
    assert talk.outcome.head is not None and talk.outcome.head.status == 400
    assert talk.outcome.json["error"]["param"] == "background" and b"s3cret" not in talk.outcome.body


# Citations


def _cited(call: HostedCall) -> ToolResult:
    sources = (
        Source({"type": "file_citation", "file_id": "file_a", "filename": "a.txt"}),
        Source({"type": "url_citation", "url": "https://b.example", "title": "B"}),
    )
    return ToolResult(call.call_id, "{cite:0} says it rains. {cite:1} agrees.", {}, sources=sources)


@pytest.mark.parametrize("pieces", [1, 3, 60])
@pytest.mark.parametrize("stream", [True, False])
def test_marks_become_annotations_where_they_stood(stream: bool, pieces: int) -> None:
    answer = 'It rains【1】. Take "both" umbrellas【2†source】 or 【none】.'
    turns = [("", ("file_search", {"query": "rain"})), (answer,)]
    talk = Talk({"stream": stream, "tools": [SEARCH]}, turns, ScriptedTools(_cited), pieces=pieces)
    assert "【1】 says it rains. 【2】 agrees." in talk.messages()[-1]["content"]
    part = talk.final["output"][-1]["content"][0]
    assert part["text"] == 'It rains. Take "both" umbrellas or 【none】.'
    file, url = part["annotations"]
    assert file == {"type": "file_citation", "file_id": "file_a", "filename": "a.txt", "index": 8}
    assert part["text"][url["start_index"] : url["end_index"]] == 'Take "both" umbrellas'


@pytest.mark.parametrize("stream", [True, False])
def test_a_mark_before_any_text_is_an_annotation_of_an_empty_one(stream: bool) -> None:
    turns = [("", ("file_search", {"query": "rain"})), ("【1】It rains.",)]
    talk = Talk({"stream": stream, "tools": [SEARCH]}, turns, ScriptedTools(_cited))
    part = talk.final["output"][-1]["content"][0]
    assert part["text"] == "It rains." and [note["index"] for note in part["annotations"]] == [0]


def test_in_a_strangers_text_nothing_is_taken_for_a_mark_of_ours() -> None:
    """A page could cite itself for what it does not say, or the next source for what it says."""
    page = "True【1】, says {cite:0} and 【2†x】."

    def found(call: HostedCall) -> ToolResult:
        source = Source({"type": "url_citation", "url": "https://a.example", "title": "A"})
        return ToolResult(call.call_id, f"{{cite:0}} {unmarked(page)}", {}, sources=(source,))

    talk = Talk({"tools": [SEARCH]}, [("", ("file_search", {"query": "x"})), ("So.",)], ScriptedTools(found))
    assert talk.messages()[-1]["content"] == "【1】 True[1], says {cite :0} and [2†x]."


def test_an_open_mark_at_the_end_is_text() -> None:
    talk = Talk({"tools": [SEARCH]}, [("", ("file_search", {"query": "x"})), ("Well 【1",)], ScriptedTools(_cited))
    assert talk.final["output"][-1]["content"][0]["text"] == "Well 【1"


@pytest.mark.parametrize("stream", [True, False])
def test_what_earlier_turns_cost_is_counted_when_a_later_one_fails(stream: bool) -> None:
    talk = Talk({"stream": stream, "tools": [SEARCH]}, [("", ("file_search", {"query": "x"}))])
    talk.exchange.receive_upstream_head(500, JSON)
    talk.exchange.receive_upstream_data(b'{"error":{"message":"no"}}')
    talk.exchange.receive_upstream_end()
    talk.pump()
    assert talk.outcome.finish is not None and talk.outcome.finish.usage is not None
    assert talk.outcome.finish.usage.total_tokens == 15


# Calls that may change something are claimed before they are sent


def _begun(request: dict[str, Any]) -> tuple[Talk, RunTools]:
    """A response whose model has called a tool that is about to run."""
    talk = Talk({"tools": [{**DICE, "require_approval": "never"}], **request}, [])
    stream = talk.outcome.calls[-1].request.stream
    talk.exchange.receive_upstream_head(200, SSE if stream else JSON)
    talk.pump()
    talk.exchange.receive_upstream_data(_turn("", ("dice__roll", {}), stream=stream))
    if not stream:
        talk.exchange.receive_upstream_end()
    run = None
    while run is None:
        action = talk.exchange.next_action()
        assert action is not None
        if isinstance(action, RunTools):
            run = action
    return talk, run


@pytest.mark.parametrize("stream", [True, False])
def test_what_would_be_known_of_a_call_goes_with_it(stream: bool) -> None:
    _, run = _begun({"stream": stream})
    assert run.claim is not None and (run.claim.status, run.claim.sent_calls) == ("failed", True)
    listed, call = run.claim.output_items
    assert (listed.type, call.type, call.id) == ("mcp_list_tools", "mcp_call", run.calls[0].item_id)
    item = json.loads(call.body)
    assert item["status"] == "incomplete" and "outcome of this call is unknown" in json.dumps(item["error"])
    assert [item.type for item in run.claim.input_items] == ["message"]


def test_what_nobody_could_read_or_send_again_is_not_claimed() -> None:
    _, run = _begun({"store": False})
    assert run.claim is None


@pytest.mark.parametrize("stream", [True, False])
def test_a_call_that_cannot_be_claimed_is_not_sent(stream: bool) -> None:
    talk, _ = _begun({"stream": stream})
    talk.exchange.receive_unclaimed(StoreError("locked"))
    talk.pump()
    assert talk.exchange.done and not talk.tools.calls
    assert talk.outcome.finish is not None and talk.outcome.finish.outcome == ("failed" if stream else "error")
    assert all(not record.sent_calls for record in talk.outcome.records)


def test_a_call_that_has_run_is_kept_with_the_response_that_fails() -> None:
    talk, run = _begun({})
    talk.exchange.receive_tool_result(ToolResult(run.calls[0].call_id, "6", {"output": "6"}))
    talk.pump()
    talk.exchange.receive_upstream_head(500, JSON)
    talk.exchange.receive_upstream_data(b'{"error":{"message":"down"}}')
    talk.exchange.receive_upstream_end()
    talk.pump()
    (record,) = talk.outcome.records
    assert (record.status, record.counts) == ("failed", True)
    assert [item.type for item in record.output_items] == ["mcp_list_tools", "mcp_call"]
    assert talk.outcome.head is not None and talk.outcome.head.status == 500
    assert record.id in talk.outcome.json["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_while_a_call_runs_finds_it(stream: bool) -> None:
    talk, _ = _begun({"stream": stream})
    talk.exchange.cancel(CancelReason.CLIENT_GONE)
    talk.pump()
    (record,) = talk.outcome.records
    item = json.loads(record.output_items[-1].body)
    assert record.counts and (item["type"], item["status"]) == ("mcp_call", "incomplete")
    assert "outcome of this call is unknown" in json.dumps(item["error"])


def test_a_result_with_half_a_character_is_a_result() -> None:
    """A lone surrogate has no bytes in UTF-8; what counts them goes on."""

    def found(call: HostedCall) -> ToolResult:
        return ToolResult(call.call_id, "a \ud800 b", {"queries": ["x"]})

    talk = Talk({"tools": [SEARCH]}, [("", ("file_search", {"query": "x"})), ("Done.",)], ScriptedTools(found))
    assert talk.final["status"] == "completed" and talk.final["output"][-1]["content"][0]["text"] == "Done."
