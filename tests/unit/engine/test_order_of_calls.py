"""Items come in the order in which the model made its calls, whoever runs them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.engine.ports.actions import Chain, Context
from antiphon.engine.ports.hosted_tools import HostedCall, ToolResult
from tests.support.hosted_tools import ScriptedTools
from tests.unit.engine.test_tool_loop import CODE, DICE, SEARCH, USAGE, Talk

LOOK = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
DRAW = {"type": "custom", "name": "draw"}
SHELL = {"type": "local_shell"}
TOOLS = [SEARCH, CODE, DICE, LOOK, DRAW, SHELL]
FIND, RUN, ROLL = ("file_search", {"query": "a"}), ("code_interpreter", {"code": "1"}), ("dice__roll", {"sides": 6})
SEE, PAINT = ("look", {"at": "é"}), ("draw", {"input": "a line"})
LIST = ("local_shell", {"command": ["ls"]})
KINDS = {
    "file_search": "file_search_call",
    "code_interpreter": "code_interpreter_call",
    "dice__roll": "mcp_approval_request",
    "look": "function_call",
    "draw": "custom_tool_call",
    "local_shell": "local_shell_call",
}
ORDERS = [
    [FIND, SEE],
    [SEE, FIND],
    [FIND, PAINT, RUN, SEE],
    [FIND, LIST],
    [SEE, FIND, PAINT],
    [FIND, ROLL, RUN],
    [ROLL, FIND, SEE],
    [FIND, SEE, SEE],
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("calls", ORDERS, ids=lambda calls: " ".join(name for name, _ in calls))
def test_items_come_in_the_order_of_the_calls(calls: list[tuple[str, Any]], stream: bool) -> None:
    talk = Talk({"tools": TOOLS, "stream": stream, "max_output_tokens": 900}, [("So.", *calls)])
    output = [item for item in talk.final["output"] if item["type"] != "mcp_list_tools"]
    assert [item["type"] for item in output] == ["message", *(KINDS[name] for name, _ in calls)]
    assert talk.final["status"] == "completed" and len(talk.outcome.calls) == 1, "the client is to act first"
    written = {"function_call": {"at": "é"}, "custom_tool_call": "a line"}
    for item in output:
        if item["type"] in written:
            told = item.get("input") or json.loads(item["arguments"])
            assert told == written[item["type"]]
    assert talk.final["usage"]["output_tokens"] == USAGE["completion_tokens"]
    stored = [item.type for item in talk.outcome.records[0].output_items if item.type != "mcp_list_tools"]
    assert stored == [item["type"] for item in output]


def test_a_call_without_arguments_keeps_its_place() -> None:
    talk = Talk({"tools": TOOLS, "stream": True}, [("", FIND, ("look", ""))])
    assert [
        (item["type"], item.get("arguments")) for item in talk.final["output"] if item["type"] in KINDS.values()
    ] == [
        ("file_search_call", None),
        ("function_call", "{}"),
    ]


def test_the_history_shows_both_calls_as_one_answer() -> None:
    def found(call: HostedCall) -> ToolResult:
        return ToolResult(call.call_id, "rain", {})

    first = Talk({"tools": [SEARCH, LOOK]}, [("", FIND, SEE)], ScriptedTools(found))
    (record,) = first.outcome.records
    call = first.final["output"][-1]
    chain = Context(chain=Chain((*record.input_items, *record.output_items)))
    sent = [{"type": "function_call_output", "call_id": call["call_id"], "output": "seen"}]
    then = Talk({"tools": [SEARCH, LOOK], "input": sent, "previous_response_id": "resp_1"}, [("So.",)], context=chain)
    _, assistant, *told = then.messages()
    assert [made["function"]["name"] for made in assistant["tool_calls"]] == ["file_search", "look"]
    assert [(one["role"], one["content"]) for one in told] == [("tool", "rain"), ("tool", "seen")]


def test_a_call_after_the_results_of_another_is_an_answer_of_its_own() -> None:
    first = Talk({"tools": [SEARCH, LOOK]}, [("", FIND), ("", SEE)])
    (record,) = first.outcome.records
    call = first.final["output"][-1]
    chain = Context(chain=Chain((*record.input_items, *record.output_items)))
    sent = [{"type": "function_call_output", "call_id": call["call_id"], "output": "seen"}]
    then = Talk({"tools": [SEARCH, LOOK], "input": sent, "previous_response_id": "resp_1"}, [("So.",)], context=chain)
    assert [message["role"] for message in then.messages()] == ["user", "assistant", "tool", "assistant", "tool"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_broken_call_behind_another_fails_the_response_and_is_shown(stream: bool) -> None:
    talk = Talk({"tools": TOOLS, "stream": stream, "store": True}, [("", FIND, SEE, ("draw", '{"input": "half'))])
    assert not talk.tools.calls
    (record,) = talk.outcome.records or (None,)
    if stream:
        assert record is not None and talk.final["status"] == "failed"
        items = [(item["type"], item["status"]) for item in talk.final["output"] if item["type"] != "mcp_list_tools"]
        assert items == [("function_call", "completed"), ("custom_tool_call", "incomplete")]
    else:
        assert talk.outcome.head is not None and talk.outcome.head.status == 502
