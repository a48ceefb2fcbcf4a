"""What nobody here knows is left out and named; in strict mode it is a 400; what a call waits for always is one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import Raw

from antiphon.engine.ports.actions import RequestHead
from antiphon.errors import InvalidRequest
from antiphon.translation.request.body import allow_fields, read_request
from antiphon.translation.request.field_support import GROUPS
from antiphon.types.tolerance import Tolerance
from tests.support.exchanges import JSON, Outcome, make_exchange, run
from tests.support.hosted_tools import ScriptedTools

OK = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}'
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
IMAGE = {"type": "input_image", "image_url": "https://x/y.png"}

SEARCH = {"type": "file_search", "vector_store_ids": ["vs_1"]}
CODE = {"type": "code_interpreter", "container": {"type": "auto"}}
SERVER = {"type": "mcp", "server_label": "m", "server_url": "https://m.example", "require_approval": "never"}
HOSTED: list[tuple[dict[str, Any], str]] = [
    ({"type": "tool_search", "aura": 1}, "tools.tool_search.aura"),
    ({"type": "tool_search", "execution": "bogus"}, "tools[0].execution:bogus"),
    ({"type": "web_search", "aura": 1}, "tools.web_search.aura"),
    ({**SEARCH, "aura": 1}, "tools.file_search.aura"),
    ({**CODE, "aura": 1}, "tools.code_interpreter.aura"),
    ({**SERVER, "aura": 1}, "tools.mcp.aura"),
]

UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"input": [USER, {"type": "future_call", "x": 1}]}, "input.future_call"),
    ({"input": [USER, {"type": "future_output", "call_id": "c", "output": "x"}]}, "input.future_output"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_smell"}]}]},
        "content.input_smell",
    ),
    (
        {"input": [USER, {"role": "assistant", "content": [{"type": "smell"}, {"type": "output_text", "text": "a"}]}]},
        "content.smell",
    ),
    ({"input": [USER, {"type": "reasoning", "summary": [{"type": "hunch", "text": "x"}]}, USER]}, "content.hunch"),
    ({"input": [{"role": "user", "content": [{**IMAGE, "detail": "atomic"}]}]}, "input[0].content[0].detail:atomic"),
    ({"include": ["future.thing"]}, "include:future.thing"),
    ({"reasoning": {"effort": "heroic"}}, "reasoning.effort:heroic"),
    ({"reasoning": {"summary": "sung"}}, "reasoning.summary:sung"),
    ({"text": {"verbosity": "epic"}}, "text.verbosity:epic"),
    ({"service_tier": "platinum"}, "service_tier:platinum"),
    ({"truncation": "clever"}, "truncation:clever"),
    ({"context_management": [{"type": "forgetting"}]}, "context_management:forgetting"),
    ({"tools": [{"type": "teleport"}]}, "tools.teleport"),
    ({"wibble": 1}, "wibble"),
    ({"tools": [{**TOOL, "telepathic": True}]}, "tools.function.telepathic"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [{**TOOL, "aura": 1}]}]}, "tools.function.aura"),
    ({"tools": [{"type": "shell", "aura": 1}]}, "tools.shell.aura"),
    ({"input": [USER, {"type": "additional_tools", "tools": [{**TOOL, "aura": 1}]}]}, "tools.function.aura"),
    ({"input": [{**USER, "aura": 1}]}, "input.message.aura"),
    ({"input": [{**USER, "source": {"type": "mcp_call", "name": "smell"}}]}, "input.message.source"),
    ({"input": [USER, {"type": "reasoning", "summary": [], "aura": 1}, USER]}, "input.reasoning.aura"),
    (
        {
            "input": [
                USER,
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "aura": 1},
                {"type": "function_call_output", "call_id": "c", "output": "x", "aura": 1},
            ]
        },
        "input.function_call_output.aura",
    ),
    (
        {
            "input": [
                USER,
                {"type": "mcp_call", "id": "m", "name": "f", "server_label": "d", "arguments": "{}", "aura": 1},
                USER,
            ]
        },
        "input.mcp_call.aura",
    ),
    ({"input": [USER, {"type": "agent_message", "content": "x", "aura": 1}]}, "input.agent_message.aura"),
    ({"input": [USER, {"type": "additional_tools", "tools": [TOOL], "aura": 1}]}, "input.additional_tools.aura"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi", "aura": 1}]}]},
        "content.input_text.aura",
    ),
    ({"input": [{"role": "user", "content": [{**IMAGE, "aura": 1}]}]}, "content.input_image.aura"),
    (
        {"input": [{"role": "user", "content": [{"type": "smell"}]}, USER]},
        "content.smell",
    ),
    ({"tools": [{"type": "tool_search", "execution": "client", "aura": 1}]}, "tools.tool_search.aura"),
    (
        {"input": [USER, {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}, USER]},
        "input.reasoning.encrypted_content",
    ),
    ({"input": [{"type": "compaction", "encrypted_content": "gAAAA"}, USER]}, "input.compaction"),
]


def _ask(fields: dict[str, Any], **options: Any) -> Outcome:
    return run({"model": "m", "input": "hi", **fields}, [OK], headers=JSON, **options)


def _named(outcome: Outcome) -> list[str]:
    assert outcome.head is not None
    return dict(outcome.head.headers).get("antiphon-ignored", "").split(", ")


@pytest.mark.parametrize(("fields", "name"), UNKNOWN, ids=[name for _, name in UNKNOWN])
def test_what_nobody_knows_is_left_out_and_named_once(fields: dict[str, Any], name: str) -> None:
    outcome = _ask(fields)
    assert outcome.head is not None and outcome.head.status == 200, outcome.body
    assert _named(outcome).count(name) == 1
    for word in ("future", "smell", "hunch", "atomic", "heroic", "platinum", "telepathic", "aura", "gAAAA"):
        assert word not in json.dumps(outcome.chat)


@pytest.mark.parametrize(("fields", "name"), UNKNOWN, ids=[name for _, name in UNKNOWN])
def test_in_strict_mode_it_is_a_400_that_names_the_place(fields: dict[str, Any], name: str) -> None:
    outcome = _ask(fields, strict=True)
    assert outcome.head is not None and outcome.head.status == 400 and not outcome.calls
    assert outcome.json["error"]["param"] and outcome.json["error"]["message"]


def test_an_unknown_item_is_refused_by_its_place() -> None:
    assert _ask({"input": [USER, {"type": "omen"}]}, strict=True).json["error"]["param"] == "input[1].type"


INSIDE: list[tuple[dict[str, Any], str]] = [
    ({"text": {"format": {"type": "text", "aura": 1}}}, "text.format.aura"),
    ({"context_management": [{"type": "compaction", "aura": 1}]}, "context_management.aura"),
    (
        {
            "tools": [TOOL],
            "tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "f"}], "aura": 1},
        },
        "tool_choice.aura",
    ),
    (
        {
            "tools": [TOOL],
            "tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "f", "aura": 1}]},
        },
        "tool_choice.tools.aura",
    ),
    ({"tools": [{"type": "custom", "name": "c", "format": {"type": "text", "aura": 1}}]}, "tools.custom.format.aura"),
    ({"tools": [{"type": "shell", "environment": {"type": "local", "aura": 1}}]}, "tools.shell.environment.aura"),
    (
        {"input": [{"type": "configuration_update", "reasoning": {"aura": 1}, "text": {}}, USER]},
        "input.configuration_update.reasoning.aura",
    ),
    (
        {"input": [{"type": "configuration_update", "reasoning": {}, "text": {"aura": 1}}, USER]},
        "input.configuration_update.text.aura",
    ),
    ({"tools": [{"type": "web_search", "user_location": {"aura": 1}}]}, "tools.web_search.user_location.aura"),
    ({"tools": [{**SEARCH, "ranking_options": {"aura": 1}}]}, "tools.file_search.ranking_options.aura"),
    ({"tools": [{**CODE, "container": {"type": "auto", "aura": 1}}]}, "tools.code_interpreter.container.aura"),
]


@pytest.mark.parametrize(("fields", "name"), INSIDE, ids=[name for _, name in INSIDE])
def test_what_is_unknown_inside_of_what_is_known_is_named(fields: dict[str, Any], name: str) -> None:
    outcome = _ask(fields, tools=ScriptedTools())
    assert outcome.head is not None and outcome.head.status == 200, outcome.body
    assert _named(outcome).count(name) == 1 and "aura" not in json.dumps(outcome.chat)


@pytest.mark.parametrize(("tool", "name"), HOSTED, ids=[name for _, name in HOSTED])
def test_members_of_tools_that_run_here_are_looked_at_too(tool: dict[str, Any], name: str) -> None:
    outcome = _ask({"tools": [tool, {**TOOL, "defer_loading": True}]}, tools=ScriptedTools())
    assert outcome.head is not None and outcome.head.status == 200, outcome.body
    assert _named(outcome).count(name) == 1
    refused = _ask({"tools": [tool]}, tools=ScriptedTools(), strict=True)
    assert refused.head is not None and refused.head.status == 400 and not refused.calls
    assert refused.json["error"]["param"].startswith("tools[0].")


def test_what_tools_that_run_here_are_declared_with_is_known() -> None:
    tools = [
        {"type": "tool_search", "execution": "server", "description": "Find.", "parameters": {"type": "object"}},
        {"type": "web_search", "search_context_size": "low", "search_content_types": ["text"], "filters": None},
        {**SEARCH, "max_num_results": 2, "filters": None, "ranking_options": None},
        {**CODE, "allowed_callers": ["direct"]},
        {**SERVER, "server_description": "M", "headers": {}, "authorization": "x", "allowed_tools": None},
        {**TOOL, "defer_loading": True},
    ]
    outcome = _ask({"tools": tools}, tools=ScriptedTools(), strict=True)
    assert outcome.head is not None and outcome.head.status == 200, outcome.body
    assert _named(outcome) == [
        "tools.tool_search.description",
        "tools.tool_search.parameters",
        "tools.web_search.search_content_types",
    ]


_ANY_TOOL = "allowed_callers defer_loading"
_ANY_SEARCH = "filters user_location search_context_size search_content_types external_web_access"
MEMBERS: list[tuple[dict[str, Any], str]] = [
    ({"type": "function", "name": "f"}, f"{_ANY_TOOL} description parameters strict async output_schema"),
    ({"type": "custom", "name": "c"}, f"{_ANY_TOOL} description format async"),
    ({"type": "namespace", "name": "n", "tools": [TOOL]}, f"{_ANY_TOOL} description"),
    ({"type": "local_shell"}, _ANY_TOOL),
    ({"type": "shell"}, f"{_ANY_TOOL} environment"),
    ({"type": "apply_patch"}, _ANY_TOOL),
    ({"type": "tool_search", "execution": "client"}, f"{_ANY_TOOL} description parameters"),
    *(({"type": f"web_search{version}"}, _ANY_SEARCH) for version in ("", "_2025_08_26", "_preview")),
    ({"type": "web_search_preview_2025_03_11"}, _ANY_SEARCH),
    (SEARCH, "max_num_results filters filter ranking_options vector_store_id"),
    (CODE, "allowed_callers"),
    (SERVER, f"{_ANY_TOOL} connector_id tunnel_id server_description authorization headers allowed_tools"),
    ({"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "lark", "definition": "start: A"}}, ""),
    ({"type": "shell", "environment": {"type": "local", "skills": []}}, ""),
    (
        {
            "type": "web_search",
            "user_location": {"type": "approximate", "country": "DE", "region": None, "city": None, "timezone": None},
        },
        "",
    ),
    ({**SEARCH, "ranking_options": {"ranker": "auto", "score_threshold": 0.5, "hybrid_search": None}}, ""),
    ({**CODE, "container": {"type": "auto", "file_ids": [], "memory_limit": None, "network_policy": None}}, ""),
]


@pytest.mark.parametrize(("tool", "members"), MEMBERS, ids=str)
def test_what_a_tool_is_declared_with_is_known(tool: dict[str, Any], members: str) -> None:
    tool = {**dict.fromkeys(members.split()), **tool}
    outcome = _ask({"tools": [tool]}, tools=ScriptedTools(), strict=True)
    assert outcome.head is not None and outcome.head.status == 200, outcome.body
    # Of web searches one version runs here.
    assert _named(outcome) == [f"tools.{tool['type']}" if tool["type"].startswith("web_search_") else ""]


def test_a_verbosity_that_nobody_knows_is_not_sent() -> None:
    assert _ask({"text": {"verbosity": "low"}}, profile="openai").chat["verbosity"] == "low"
    outcome = _ask({"text": {"verbosity": "epic"}}, profile="openai")
    assert "verbosity" not in outcome.chat and outcome.json["text"]["verbosity"] == "medium"


def test_a_tool_that_runs_here_for_programs_alone_is_left_out() -> None:
    outcome = _ask({"tools": [{**CODE, "allowed_callers": ["programmatic"]}, TOOL]}, tools=ScriptedTools())
    assert _named(outcome) == ["tools[0].allowed_callers"]
    assert [tool["function"]["name"] for tool in outcome.chat["tools"]] == ["f"]


@pytest.mark.parametrize("access", [False, "cached", "indexed"])
def test_a_web_search_without_the_web_is_left_out_and_named(access: Any) -> None:
    """What Codex sends for a search of OpenAI's cache."""
    tool = {"type": "web_search", "external_web_access": access}
    outcome = _ask({"tools": [tool, TOOL]}, tools=ScriptedTools(), strict=True)
    assert _named(outcome) == ["tools.web_search"]
    assert [one["function"]["name"] for one in outcome.chat["tools"]] == ["f"]
    chosen = _ask({"tools": [tool], "tool_choice": {"type": "web_search"}}, tools=ScriptedTools())
    assert chosen.json["error"]["param"] == "tool_choice"
    assert "cannot run here as it is declared" in chosen.json["error"]["message"]


@pytest.mark.parametrize("access", [True, None, "live"])
def test_a_web_search_that_may_ask_the_web_does(access: Any) -> None:
    outcome = _ask({"tools": [{"type": "web_search", "external_web_access": access}]}, tools=ScriptedTools())
    assert [one["function"]["name"] for one in outcome.chat["tools"]] == ["web_search"] and _named(outcome) == [""]


@pytest.mark.parametrize("kind", ["mcp", "code_interpreter"])
def test_a_tool_that_runs_here_cannot_come_with_an_item(kind: str) -> None:
    for tools in (None, ScriptedTools()):
        outcome = _ask({"input": [USER, {"type": "additional_tools", "tools": [{"type": kind}]}]}, tools=tools)
        error = outcome.json["error"]
        assert (error["param"], error["code"]) == ("input[1].tools[0].type", "unsupported_tool")
        assert "Declare the tool in 'tools'" in error["message"] and "set it up" not in error["message"]


def test_what_an_item_is_shown_with_is_known() -> None:
    """Items of hosted tools are shown as they are; notes of clients and servers mean nothing to a model."""
    items = [
        {**USER, "internal_chat_message_metadata_passthrough": {"a": 1}, "created_by": {"a": 1}},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "q"}, "aura": "seen"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "caller": {"type": "direct"}},
        {"type": "function_call_output", "call_id": "c", "output": {"aura": 1}},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}]},
        {"type": "agent_message", "author": "a", "recipient": "b", "content": "x"},
        {"type": "configuration_update", "reasoning": {"effort": "low"}},
        {"type": "agent_reasoning", "text": "x"},
        {"type": "shell_call", "call_id": "s", "action": {"commands": ["ls"]}},
        {"type": "shell_call_output", "call_id": "s", "output": "x", "max_output_length": 5},
        USER,
    ]
    outcome = _ask({"input": items}, strict=True)
    assert outcome.head is not None and outcome.head.status == 200, outcome.body
    assert _named(outcome) == [""] and "seen" in json.dumps(outcome.chat)


def test_a_mark_for_a_cache_is_named_in_strict_mode_too() -> None:
    part = {"type": "input_text", "text": "hi", "prompt_cache_breakpoint": {"mode": "explicit"}}
    outcome = _ask({"input": [{"role": "user", "content": [part]}]}, strict=True)
    assert _named(outcome) == ["content.input_text.prompt_cache_breakpoint"]


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_a_message_of_which_nothing_is_known_is_no_message(role: str) -> None:
    unknown = {"role": role, "content": [{"type": "smell"}, {"type": "hunch"}]}
    outcome = _ask({"input": [USER, unknown]})
    assert outcome.chat["messages"] == [USER] and _named(outcome) == ["content.smell", "content.hunch"]
    alone = _ask({"input": [unknown], "instructions": "Be brief."})
    assert alone.head is not None and alone.head.status == 400 and not alone.calls
    assert alone.json["error"]["param"] == "input" and "content.smell, content.hunch" in alone.json["error"]["message"]


@pytest.mark.parametrize("empty", ["", []])
def test_a_message_that_says_nothing_is_one(empty: Any) -> None:
    assert _ask({"input": [{"role": "user", "content": empty}]}).chat["messages"] == [{"role": "user", "content": ""}]


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max", None])
@pytest.mark.parametrize("profile", ["generic", "ollama", "deepseek", "gemini", "groq"])
def test_every_effort_is_echoed_as_it_was_sent(effort: str | None, profile: str) -> None:
    outcome = _ask({"reasoning": {"effort": effort}}, profile=profile, strict=True)
    assert outcome.json["reasoning"]["effort"] == effort
    (record,) = outcome.records
    assert json.loads(record.body)["reasoning"]["effort"] == effort


def test_what_is_known_is_not_called_unknown() -> None:
    whole = {"type": "object", "additionalProperties": False}
    tool = {
        **TOOL,
        "output_schema": {},
        "allowed_callers": ["direct", "programmatic"],
        "strict": True,
        "parameters": whole,
    }
    fields = {"tools": [tool]}
    outcome = _ask({**fields, "include": ["web_search_call.results"], "reasoning": {"effort": "max"}}, strict=True)
    assert _named(outcome) == [
        "include:web_search_call.results",
        "tools.function.allowed_callers",
        "tools.function.output_schema",
    ]


def test_a_known_thing_of_an_unknown_effort_is_echoed_as_it_was_sent() -> None:
    outcome = _ask({"reasoning": {"effort": "heroic"}})
    assert outcome.json["reasoning"]["effort"] == "heroic" and "reasoning_effort" not in outcome.chat


@pytest.mark.parametrize(
    ("items", "param"),
    [
        # The output is of a type that nobody knows: the call waits for it.
        (
            [
                USER,
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "future_output", "call_id": "c", "output": "x"},
            ],
            "input",
        ),
        # All that the output says is of a type that nobody knows.
        (
            [
                USER,
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "smell"}]},
            ],
            "input[2].output",
        ),
    ],
)
def test_what_a_call_waits_for_is_never_left_out(items: list[dict[str, Any]], param: str) -> None:
    outcome = _ask({"input": items})
    assert outcome.head is not None and outcome.head.status == 400 and not outcome.calls
    assert outcome.json["error"]["param"] == param


def test_what_restricts_the_answer_is_never_left_out() -> None:
    for fields in (
        {"text": {"format": {"type": "xml"}}},
        {"tool_choice": {"type": "future"}, "tools": [TOOL]},
        {"tool_choice": "perhaps", "tools": [TOOL]},
    ):
        outcome = _ask(fields)
        assert outcome.head is not None and outcome.head.status == 400, fields


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"type": "apply_patch_call_output", "call_id": "c", "output": {"line": 3}}, '{"line":3}'),
        ({"type": "apply_patch_call_output", "call_id": "c", "output": None}, "Done."),
        ({"type": "program_output", "call_id": "c", "result": {"line": 3}}, '{"line":3}'),
        ({"type": "program_output", "call_id": "c", "result": None}, "Done."),
    ],
)
def test_a_result_that_is_no_text_is_shown_as_json(answer: dict[str, Any], told: str) -> None:
    made: dict[str, Any] = {"type": "program", "code": "x", "fingerprint": "f"}
    if answer["type"] == "apply_patch_call_output":
        made = {"type": "apply_patch_call", "operation": {"type": "delete_file", "path": "p"}}
    messages = _ask({"input": [USER, {**made, "call_id": "c", "id": "i"}, answer]}).chat["messages"]
    assert messages[-1]["role"] == "tool" and messages[-1]["content"].endswith(told)


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "agent_reasoning", "text": {"a": 1}}, "input[2]"),
        ({"type": "mcp_approval_response", "approval_request_id": "r", "reason": {"a": 1}}, "input[2].reason"),
    ],
)
def test_what_is_no_text_where_one_belongs_is_refused(item: dict[str, Any], param: str) -> None:
    request = {"type": "mcp_approval_request", "id": "r", "name": "f", "server_label": "d", "arguments": "{}"}
    assert _ask({"input": [USER, request, item]}).json["error"]["param"] == param


def test_a_known_part_in_the_wrong_place_is_refused() -> None:
    outcome = _ask({"input": [{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}]})
    assert outcome.json["error"]["param"] == "input[0].content[0].type"


def test_the_log_gets_the_names_too() -> None:
    assert make_exchange().known.unknown == ()
    exchange = make_exchange()
    body = json.dumps({"model": "m", "input": [USER, {"type": "omen"}], "service_tier": "platinum"}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    assert exchange.known.unknown == ("service_tier:platinum", "input.omen")


def test_an_input_of_unknown_items_alone_says_so() -> None:
    outcome = _ask({"input": [{"type": "future_call"}, {"type": "omen"}]})
    assert outcome.head is not None and outcome.head.status == 400
    assert "input.future_call, input.omen" in outcome.json["error"]["message"]


def test_what_was_left_out_is_not_stored() -> None:
    outcome = _ask({"input": [USER, {"type": "future_call"}]})
    assert [item.type for item in outcome.records[0].input_items] == ["message"]


def test_names_are_kept_once_so_many_and_so_long() -> None:
    tolerance = Tolerance()
    for number in (0, 0, *range(100)):
        tolerance.note(f"{number}{'x' * 500}")
    assert len(tolerance.names) == len(set(tolerance.names)) == 65 and tolerance.names[-1] == "..."
    assert {len(name) for name in tolerance.names[:-1]} == {128}


def test_left_out_tools_are_kept_once_so_many_and_so_long() -> None:
    tolerance = Tolerance()
    for number in (0, 0, *range(100)):
        tolerance.leave_out_tool(f"{number}{'x' * 500}", InvalidRequest("no such tool"))
    assert len(tolerance.tools) == len(set(tolerance.tools)) == 64 and not tolerance.names
    assert {len(name) for name in tolerance.tools} == {128}


def test_a_strict_reader_looks_at_every_name() -> None:
    """It refuses the first one that it cannot note, however many it has noted of another kind."""
    tolerance = Tolerance(strict=True, names=["noted"] * 65)
    assert list(tolerance.unknown(["a", "known", "b"], {"known"})) == ["a", "b"]
    with pytest.raises(InvalidRequest):
        tolerance.leave_out("a", InvalidRequest("unknown"))
    tolerance.note("b")
    assert len(tolerance.names) == 65


def test_many_unknown_names_are_bounded() -> None:
    outcome = _ask({"input": [USER, *({"type": f"new_{n}_{'x' * 500}"} for n in range(300))]})
    assert outcome.head is not None and outcome.head.status == 200
    assert len(", ".join(_named(outcome))) <= 1024


@pytest.mark.parametrize("name", [name for name in GROUPS["Fields"] if "." not in name and " " not in name])
def test_a_field_of_the_table_is_never_an_unknown_one(name: str) -> None:
    outcome = _ask({name: {}}, strict=True)
    assert outcome.head is not None
    if outcome.head.status == 400:
        assert outcome.json["error"]["code"] != "unknown_parameter"


def test_a_field_that_the_operator_lets_through_is_not_unknown() -> None:
    request = read_request(
        json.dumps({"model": "m", "input": "hi", "wibble": 1}).encode(), max_items=9, max_tools=9, strict=True
    )
    allow_fields(request, frozenset({"wibble"}))
    assert request.unknown.names == [] and request.parameters["wibble"] == Raw(b"1")


def test_of_a_million_unknown_names_those_are_looked_at_that_can_be_named() -> None:
    tolerance, met = Tolerance(), 0

    def members() -> Iterator[str]:
        nonlocal met
        for met in range(1, 1_000_001):
            yield f"x{met}"

    for name in tolerance.unknown(members(), frozenset()):
        tolerance.note(name)
    assert met == 66 and tolerance.names[-2:] == ["x64", "..."]


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("include", ["reasoning.encrypted_content"], 32),
        ("context_management", [{"type": "compaction"}], 32),
        ("tool_choice.tools", [{"type": "function", "name": "f"}], 1024),
    ],
)
def test_a_list_that_nobody_needs_long_has_an_end(name: str, value: list[Any], limit: int) -> None:
    def refused(length: int) -> Any:
        long: Any = value * length
        if name == "tool_choice.tools":
            long = {"type": "allowed_tools", "mode": "auto", "tools": long}
        fields = {"tools": [TOOL], "context_management": [], name.partition(".")[0]: long}
        return run({"model": "m", "input": "hi", **fields})

    assert refused(limit).calls
    outcome = refused(limit + 1)
    assert outcome.head is not None and outcome.head.status == 400 and not outcome.calls
    error = outcome.json["error"]
    assert (error["param"], error["code"]) == (name, "array_above_max_length")
    assert f"maximum length {limit}, but got an array with length {limit + 1}" in error["message"]


def test_members_that_the_request_has_itself_cost_no_more_than_any_others() -> None:
    members = {f"x{number}": 1 for number in range(20_000)}
    began = time.process_time()
    outcome = run({"model": "m", "input": "hi", "extra_body": members, **members})
    assert outcome.calls and time.process_time() - began < 1
