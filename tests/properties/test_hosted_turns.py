"""Whatever model, tools and client do in a response with tools that run here: it is whole, and so is each request.

The judge holds every stream against the grammar, its fold and both schemas; the strict chat server every request.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.config.tools import ToolSettings
from antiphon.engine.ports.actions import Chain, Context, RequestHead, RunTools
from antiphon.engine.ports.hosted_tools import HostedCall, ToolResult
from antiphon.translation.events.citations import Source
from tests.support.effort import examples
from tests.support.exchanges import JSON, SSE, Outcome, make_exchange, pump
from tests.support.hosted_tools import ScriptedTools
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.model_turns import model_turn
from tests.support.strict_chat import check_chat_request

TOOLS: list[dict[str, Any]] = [
    {"type": "file_search", "vector_store_ids": ["vs_1"]},
    {"type": "web_search"},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "mcp", "server_label": "dice", "server_url": "https://d.example", "require_approval": "never"},
    {"type": "mcp", "server_label": "vault", "server_url": "https://v.example"},
    {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}},
    {"type": "custom", "name": "draw"},
]
NAMES = ["file_search", "web_search", "code_interpreter", "dice__roll", "vault__roll", "look", "nobody"]
HOSTED = {"file_search_call", "web_search_call", "code_interpreter_call", "mcp_call"}
INCLUDE = ["file_search_call.results", "web_search_call.action.sources", "code_interpreter_call.outputs"]

_TEXTS = st.sampled_from(
    [
        "",
        "So.",
        "It rains\u30101\u3011. Snow\u30102\u2020source\u3011!",
        "\u30101",
        "\u3010none\u3011 \u301099\u3011",
        'a "b" \\u30101',
    ]
)
_ARGUMENTS = st.sampled_from(
    [
        "{}",
        '{"query":"a"}',
        '{"code":"1+1"}',
        '{"input":"x"}',
        "",
        "{",
        "null",
        "[1]",
        '"x"',
        '{"code":' * 2000,
        '{"a":"\\ud800"}',
    ]
)
# What a custom tool gets must be text; a model that sends something else has failed, which other tests show.
_CALL = st.tuples(st.sampled_from(NAMES), _ARGUMENTS) | st.just(("draw", '{"input":"x"}'))
_CALLS = st.lists(_CALL, max_size=4)
_TURN = st.tuples(_TEXTS, _CALLS, st.integers(1, 9), st.sampled_from(["", "Hm."]))


@dataclass
class _Scripted(ScriptedTools):
    """Results by a seed: found, failed, with sources, images and everything an item may hold."""

    kinds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self._result)

    def _result(self, call: HostedCall) -> ToolResult:
        kind = self.kinds[len(self.calls) % len(self.kinds)]
        if kind == 0:
            return ToolResult(
                call.call_id,
                "The call failed: no.",
                {"error": {"type": "mcp_tool_execution_error", "content": []}},
                failed=True,
            )
        if kind == 1:
            return ToolResult(call.call_id, "", {}, images=("data:image/png;base64,AAAA",))
        fields: dict[str, dict[str, Any]] = {
            "file_search": {
                "queries": ["a"],
                "results": [{"file_id": "f", "filename": "a", "score": 1.0, "text": "x", "attributes": {}}],
            },
            "web_search": {
                "action": {
                    "type": "search",
                    "query": "a",
                    "queries": ["a"],
                    "sources": [{"type": "url", "url": "https://a.example"}],
                }
            },
            "code_interpreter": {"outputs": [{"type": "logs", "logs": "4"}]},
            "mcp": {"output": "6"},
        }
        sources = (
            Source({"type": "file_citation", "file_id": "file_a", "filename": "a.txt"}),
            Source({"type": "url_citation", "url": "https://b.example", "title": "B"}),
        )
        return ToolResult(
            call.call_id, "{cite:0} a {cite:1} b {cite:7}", fields[call.tool.type], sources=sources[: kind - 1]
        )


def _play(
    request: dict[str, Any],
    turns: list[Any],
    tools: _Scripted,
    order: list[int],
    context: Context | None = None,
    **options: Any,
) -> tuple[Outcome, bool]:
    """The whole response; results arrive in an order of their own. Every chat request is checked."""
    exchange = make_exchange(tool_types=tools.types, **options)
    outcome = Outcome()
    waiting: list[HostedCall] = []

    def go_on() -> None:
        # `pump` answers RunTools at once; here results come when and as the test says.
        while actions := exchange.actions():
            for action in actions:
                if isinstance(action, RunTools):
                    waiting.extend(action.calls)
                else:
                    _do(exchange, outcome, action, context, tools)
        while waiting and not exchange.done:
            call = waiting.pop(order[len(waiting) % len(order)] % len(waiting))
            exchange.receive_tool_result(tools.run_now(call))
            go_on()

    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), json.dumps(request).encode())
    go_on()
    number = 0
    while not exchange.done:
        call = outcome.calls[-1]
        check_chat_request(json.loads(call.request.body))
        text, calls, pieces, reasoning = turns[number] if number < len(turns) else ("Enough.", [], 1, "")
        number += 1
        assert number < 40, "it never ends"
        exchange.receive_upstream_head(200, SSE if call.request.stream else JSON)
        go_on()
        exchange.receive_upstream_data(
            model_turn(
                text, *calls, stream=call.request.stream, pieces=pieces, prefix=f"call{number}", reasoning=reasoning
            )
        )
        go_on()
        if not exchange.done and outcome.calls[-1] is call:
            exchange.receive_upstream_end()
            go_on()
    return outcome, exchange.known.streaming


def _do(exchange: Any, outcome: Outcome, action: Any, context: Context | None, tools: _Scripted) -> None:
    class One:
        """One action, as `pump` takes them."""

        def __init__(self) -> None:
            self.left = [[action]]

        def actions(self) -> list[Any]:
            return self.left.pop() if self.left else []

        def __getattr__(self, name: str) -> Any:
            return getattr(exchange, name)

    pump(One(), outcome, context, tools)  # type: ignore[arg-type]


def _output(outcome: Outcome, stream: bool) -> Any:
    final = check_stream(parse_sse(outcome.body)) if stream else outcome.json
    check_response(final)
    return final


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(one) for key, one in value.items() if key not in ("id", "call_id")}
    return [_without_ids(one) for one in value] if isinstance(value, list) else value


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(_TURN, max_size=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from(["auto", "required", "none", {"type": "file_search"}]),
    st.booleans(),
)
def test_the_loop(
    turns: list[Any], kinds: list[int], order: list[int], limit: int | None, choice: Any, include: bool
) -> None:
    request: dict[str, Any] = {"model": "m", "input": "hi", "tools": TOOLS, "tool_choice": choice}
    if limit is not None:
        request["max_tool_calls"] = limit
    if include:
        request["include"] = INCLUDE
    finals = []
    for stream in (True, False):
        tools = _Scripted(kinds=kinds)
        outcome, streamed = _play(
            {**request, "stream": stream}, turns, tools, order, tool_limits=ToolSettings(turns=3, calls=5)
        )
        if _is_failed(outcome, streamed):
            # The model was to call a tool at first, and did not.
            called = [name for name, _ in turns[0][1]] if turns else []
            assert called == [] if choice == "required" else "file_search" not in called
            assert choice not in ("auto", "none")
            finals.append({"output": "failed"})
            continue
        final = _output(outcome, streamed)
        finals.append(final)
        ran = [item for item in final["output"] if item["type"] in HOSTED]
        assert len(ran) == len(tools.calls) <= min(limit or 5, 5)
        assert all(item["status"] in ("completed", "failed") for item in ran)
        assert len(outcome.calls) <= 3 + 1
        assert final["usage"]["total_tokens"] == 15 * len(outcome.calls)
        for call in outcome.calls[1:]:
            _check_told(json.loads(call.request.body)["messages"])
        for item in final["output"]:
            for part in item.get("content", []) if item["type"] == "message" else []:
                _check_marks(part)
        (record,) = outcome.records
        assert [item.id for item in record.output_items] == [item["id"] for item in final["output"]]
    assert _without_ids(finals[0]["output"]) == _without_ids(finals[1]["output"])


def _is_failed(outcome: Outcome, stream: bool) -> bool:
    """Whether the choice was not followed, which is the one failure there is."""
    error = outcome.json.get("error") if not stream else parse_sse(outcome.body)[-1]["response"]["error"]
    assert error is None or error["code"] == "tool_choice_not_followed"
    return error is not None


def _check_told(messages: list[Any]) -> None:
    """Every call has exactly one output."""
    called = Counter(call["id"] for one in messages for call in one.get("tool_calls") or ())
    told = Counter(one["tool_call_id"] for one in messages if one["role"] == "tool")
    assert called == told and set(called.values()) <= {1}


def _check_marks(part: dict[str, Any]) -> None:
    for note in part["annotations"]:
        if note["type"] == "file_citation":
            assert 0 <= note["index"] <= len(part["text"])
        else:
            assert 0 <= note["start_index"] <= note["end_index"] <= len(part["text"])


@settings(max_examples=examples(40), deadline=None)
@given(
    st.lists(_TURN, max_size=3),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.sampled_from([True, False, None]),
    st.booleans(),
    st.booleans(),
)
def test_the_next_response_understands_what_is_replayed(
    turns: list[Any], kinds: list[int], approve: bool | None, by_client: bool, again: bool
) -> None:
    """Through a chain, or sent back by the client (`store: false`); calls and requests for approval are answered."""
    first = {"model": "m", "input": "hi", "tools": TOOLS, "store": not by_client}
    outcome, _ = _play(first, turns, _Scripted(kinds=kinds), [0], tool_limits=ToolSettings(turns=3))
    output = outcome.json["output"]
    answers: list[dict[str, Any]] = []
    for item in output:
        if item["type"] == "function_call":
            answers.append({"type": "function_call_output", "call_id": item["call_id"], "output": "seen"})
        elif item["type"] == "custom_tool_call":
            answers.append({"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "drawn"})
        elif item["type"] == "mcp_approval_request" and approve is not None:
            answer = {"type": "mcp_approval_response", "approval_request_id": item["id"], "approve": approve}
            answers += [answer] * (2 if again else 1)
    answers.append({"role": "user", "content": "and?"})
    request: dict[str, Any] = {"model": "m", "tools": TOOLS, "stream": True}
    context = None
    if by_client:
        request |= {"input": [{"role": "user", "content": "hi"}, *output, *answers], "store": False}
    else:
        request |= {"input": answers, "previous_response_id": "resp_1"}
        (record,) = outcome.records
        context = Context(chain=Chain((*record.input_items, *record.output_items)))
    asked = [item["id"] for item in output if item["type"] == "mcp_approval_request"]
    tools = _Scripted(kinds=kinds)
    if again and asked and approve is not None:
        refused, _ = _play(request, [], tools, [0], context)
        assert refused.json["error"]["code"] == "approval_already_answered"
        return
    outcome, streamed = _play(request, [("So.", [], 1, "")], tools, [0], context)
    final = _output(outcome, streamed)
    ran = [item["approval_request_id"] for item in final["output"] if item["type"] == "mcp_call"]
    assert ran == (asked if approve else [])
    assert "mcp_list_tools" not in [item["type"] for item in final["output"]]
