"""Tools of every kind: what the model is shown, what its calls become, how they are replayed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from antiphon.translation.call_arguments import CustomInput
from antiphon.translation.request.tools import decode_tools, found_on_servers, hosted_name
from antiphon.translation.tool_map import flat_name
from antiphon.types.json import fragment_of, raw, text_of
from tests.support.exchanges import Outcome, run
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.strict_chat import check_chat_request

CLIENTS = Path(__file__).parent.parent.parent / "client_requests"
CUSTOM = {"type": "custom", "name": "apply_patch", "description": "Patch files.", "format": {"type": "text"}}
GRAMMAR = {"type": "custom", "name": "sum", "format": {"type": "grammar", "syntax": "lark", "definition": "start: A"}}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}
SPACE = {"type": "namespace", "name": "mcp__files", "description": "Files.", "tools": [FUNCTION, CUSTOM]}
PATCH = '*** Begin Patch\n*** Add File: a"b\\c.txt\n+é😀\t\n*** End Patch'


def _stream(*deltas: dict[str, Any], finish: str = "tool_calls") -> bytes:
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def _called(
    name: str, arguments: str, *, pieces: int = 3, index: int = 0, call_id: str = "call_1"
) -> list[dict[str, Any]]:
    step = max(1, len(arguments) // pieces)
    first = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [
        {"index": index, "function": {"arguments": arguments[at : at + step]}} for at in range(0, len(arguments), step)
    ]
    return [{"tool_calls": [part]} for part in (first, *rest)]


def _run(tools: list[dict[str, Any]], *deltas: dict[str, Any], finish: str = "tool_calls", **request: Any) -> Outcome:
    body = {"model": "m", "input": "hi", "stream": True, "tools": tools, **request}
    outcome = run(body, [_stream(*deltas, finish=finish)])
    if outcome.calls:
        check_chat_request(outcome.chat)
    return outcome


def _items(outcome: Outcome) -> list[dict[str, Any]]:
    output: list[dict[str, Any]] = check_stream(parse_sse(outcome.body))["output"]
    return output


def _declared(outcome: Outcome) -> dict[str, dict[str, Any]]:
    return {tool["function"]["name"]: tool["function"] for tool in outcome.chat.get("tools", ())}


# What the model is shown


STRINGS = {"type": "array", "items": {"type": "string"}}
INTEGER = {"type": "integer"}
BY_TYPE: list[tuple[dict[str, Any], tuple[str, ...], dict[str, Any]]] = [
    (
        {"type": "local_shell"},
        ("command",),
        {
            "command": STRINGS,
            "working_directory": {"type": "string"},
            "timeout_ms": INTEGER,
            "env": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    ),
    (
        {"type": "shell"},
        ("commands",),
        {"commands": STRINGS, "timeout_ms": INTEGER, "max_output_length": INTEGER},
    ),
    (
        {"type": "apply_patch"},
        ("type", "path"),
        {
            "type": {"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
            "path": {"type": "string"},
            "diff": {"type": "string"},
        },
    ),
    ({"type": "tool_search", "execution": "client"}, ("query",), {"query": {"type": "string"}}),
]


@pytest.mark.parametrize(("tool", "required", "members"), BY_TYPE, ids=[tool["type"] for tool, *_ in BY_TYPE])
def test_a_tool_that_clients_know_by_its_type_has_the_arguments_of_its_items(
    tool: dict[str, Any], required: tuple[str, ...], members: dict[str, Any]
) -> None:
    function = _declared(_run([tool], {"content": "ok"}, finish="stop"))[tool["type"]]
    shown = function["parameters"]["properties"]
    assert {name: {key: said for key, said in shown[name].items() if key != "description"} for name in shown} == members
    assert all(said["description"] for said in shown.values() if "description" in said) and function["description"]
    assert function["parameters"] == {"type": "object", "properties": shown, "required": list(required)}
    own = {**tool, "description": "My own.", "parameters": {"type": "object", "properties": {"x": INTEGER}}}
    declared = _declared(_run([own], {"content": "ok"}, finish="stop"))[tool["type"]]
    assert declared == {"name": tool["type"], "description": "My own.", "parameters": own["parameters"]}


def test_a_free_text_is_one_argument() -> None:
    declared = _declared(_run([CUSTOM], {"content": "ok"}, finish="stop"))["apply_patch"]
    assert declared["description"] == "Patch files.\n\nThe `input` is free text."
    assert declared["parameters"] == {
        "type": "object",
        "properties": {"input": {"type": "string", "description": "The whole input, unchanged."}},
        "required": ["input"],
        "additionalProperties": False,
    }


def test_pitfall_26_custom_tools_are_functions_with_one_text() -> None:
    shown = _declared(_run([CUSTOM, GRAMMAR]))
    assert shown["apply_patch"]["parameters"]["required"] == ["input"]
    assert "Patch files." in shown["apply_patch"]["description"]
    assert "lark grammar" in shown["sum"]["description"] and "start: A" in shown["sum"]["description"]


def test_pitfall_8_schemas_with_references_are_untouched() -> None:
    schema = {"type": "object", "$defs": {"a": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a"}}}
    shown = _declared(_run([{"type": "function", "name": "g", "parameters": schema}]))
    assert shown["g"]["parameters"] == schema and "strict" not in shown["g"]


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}])
def test_pitfall_9_functions_without_arguments(parameters: Any) -> None:
    shown = _declared(_run([{"type": "function", "name": "g", "parameters": parameters}]))
    assert isinstance(shown["g"]["parameters"], dict)


def test_pitfall_24_namespaces_are_flattened() -> None:
    shown = _declared(_run([SPACE]))
    assert set(shown) == {"mcp__files__f", "mcp__files__apply_patch"}
    assert "Files." in shown["mcp__files__f"]["description"]


def test_pitfall_25_long_names_are_shortened_the_same_way_every_time() -> None:
    name = flat_name("tool" * 15, "space" * 10)
    assert name == flat_name("tool" * 15, "space" * 10) and len(name) == 64
    assert name != flat_name("tool" * 15, "space" * 11)
    assert flat_name("a.b") != flat_name("a_b")


def test_pitfall_25_names_that_would_collide_are_refused() -> None:
    other = {"type": "function", "name": "mcp__files__f"}
    outcome = _run([SPACE, other])
    assert outcome.head is not None and outcome.head.status == 400
    assert "mcp__files__f" in outcome.json["error"]["message"]


@pytest.mark.parametrize(
    "kind", ["web_search", "web_search_preview", "image_generation", "file_search", "computer_use"]
)
def test_pitfall_23_hosted_tools_that_cannot_run_are_left_out_and_named(kind: str) -> None:
    outcome = _run([{"type": kind}, FUNCTION], {"content": "x"}, finish="stop")
    assert set(_declared(outcome)) == {"f"}
    assert outcome.head is not None and f"tools.{kind}" in dict(outcome.head.headers)["antiphon-ignored"]


def test_only_hosted_tools_and_auto_reach_nobody() -> None:
    outcome = _run([{"type": "web_search"}], {"content": "x"}, finish="stop", tool_choice="auto")
    assert "tools" not in outcome.chat and "tool_choice" not in outcome.chat


def test_tools_come_from_items_too() -> None:
    items = [
        {"type": "additional_tools", "role": "developer", "tools": [SPACE, {"type": "web_search"}]},
        {"role": "user", "content": "hi"},
    ]
    outcome = _run([], *_called("mcp__files__f", '{"x":1}'), input=items)
    (item,) = _items(outcome)
    assert (item["type"], item["name"], item["namespace"]) == ("function_call", "f", "mcp__files")


def test_deferred_tools_wait_for_the_search_that_finds_them() -> None:
    hidden = {**FUNCTION, "defer_loading": True}
    search = {"type": "tool_search", "execution": "client"}
    assert set(_declared(_run([search, hidden]))) == {"tool_search"}
    # A search on the server would find them at once: they are shown.
    assert set(_declared(_run([{"type": "tool_search"}, hidden]))) == {"f"}
    items = [
        {"role": "user", "content": "hi"},
        {"type": "tool_search_call", "call_id": "c", "execution": "client", "arguments": {"query": "f"}},
        {"type": "tool_search_output", "call_id": "c", "execution": "client", "tools": [hidden]},
    ]
    outcome = _run([search, hidden], input=items)
    assert set(_declared(outcome)) == {"tool_search", "f"}
    assert outcome.chat["messages"][-1]["role"] == "tool" and "f" in outcome.chat["messages"][-1]["content"]


# What calls become


@pytest.mark.parametrize("pieces", [1, 2, 7, 40, 400])
def test_a_custom_call_streams_its_input(pieces: int) -> None:
    outcome = _run([CUSTOM], *_called("apply_patch", json.dumps({"input": PATCH}), pieces=pieces))
    (item,) = _items(outcome)
    assert item["type"] == "custom_tool_call" and item["input"] == PATCH and item["status"] == "completed"
    assert (item["name"], item["call_id"]) == ("apply_patch", "call_1") and item["id"].startswith("ctc_")
    kinds = [event["type"] for event in parse_sse(outcome.body)]
    assert "response.custom_tool_call_input.delta" in kinds
    assert kinds.count("response.custom_tool_call_input.done") == 1
    assert not any("function_call" in kind for kind in kinds)


def test_the_same_custom_call_as_json() -> None:
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "apply_patch", "arguments": json.dumps({"input": PATCH})},
            }
        ],
    }
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}).encode()
    outcome = run(
        {"model": "m", "input": "hi", "tools": [CUSTOM]}, [body], headers=(("content-type", "application/json"),)
    )
    check_response(outcome.json)
    assert outcome.json["output"][0]["input"] == PATCH


@pytest.mark.parametrize(
    "arguments", ['{"input": "*** Begin', '{"input": "whole"', '{"input": "a" "b"}', '{"other": 1}', "{"]
)
def test_pitfall_27_half_an_input_is_never_a_whole_one(arguments: str) -> None:
    outcome = _run([CUSTOM], *_called("apply_patch", arguments))
    events = parse_sse(outcome.body)
    response = check_stream(events)
    assert response["status"] == "failed"
    assert [item["status"] for item in response["output"]] == ["incomplete"]


def test_a_custom_call_cut_by_the_token_limit_is_incomplete() -> None:
    outcome = _run([CUSTOM], *_called("apply_patch", '{"input": "*** Beg'), finish="length")
    response = check_stream(parse_sse(outcome.body))
    assert response["status"] == "incomplete" and response["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("print(1)", "print(1)"),
        ('{"a": 1, "input": "x"}', "x"),
        ('{"input": "x", "why": "y"}', "x"),
        ('{"input": {"a": 1}}', '{"a": 1}'),
        (' {\n "input" : "x" } ', "x"),
        ('{"input": ""}', ""),
        # No JSON, but what models write.
        ('{"input": "one\ntwo\tthree"}', "one\ntwo\tthree"),
    ],
)
def test_models_that_write_the_input_in_their_own_way(arguments: str, text: str) -> None:
    (item,) = _items(_run([CUSTOM], *_called("apply_patch", arguments)))
    assert item["input"] == text and item["status"] == "completed"


def test_the_input_is_the_same_however_it_is_cut() -> None:
    dice = random.Random(7)
    for text in (PATCH, "", "\\u0041", '{"input":"x"}', "\u2028 \x7f"):
        for ascii_only in (True, False):
            whole = json.dumps({"input": text}, ensure_ascii=ascii_only)
            for _ in range(50):
                cuts = sorted(dice.randrange(len(whole) + 1) for _ in range(5))
                decoder = CustomInput()
                out = b""
                for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
                    out += decoder.feed(fragment_of(whole[start:end])) if start < end else b""
                out += decoder.end()
                assert (text_of(out), decoder.complete) == (text, True)


def test_calls_come_back_with_their_namespace() -> None:
    deltas = _called("mcp__files__f", '{"x":1}') + _called(
        "mcp__files__apply_patch", '{"input":"y"}', index=1, call_id="b"
    )
    function, custom = _items(_run([SPACE], *deltas))
    assert (function["type"], function["name"], function["namespace"]) == ("function_call", "f", "mcp__files")
    assert (custom["type"], custom["name"], custom["namespace"]) == ("custom_tool_call", "apply_patch", "mcp__files")


NATIVE = {
    "local_shell": (
        '{"command": ["ls", "-l"], "timeout_ms": 5}',
        "action",
        {"type": "exec", "command": ["ls", "-l"], "env": {}, "timeout_ms": 5},
    ),
    "shell": ('{"commands": ["ls"]}', "action", {"commands": ["ls"], "timeout_ms": None, "max_output_length": None}),
    "apply_patch": ('{"type": "delete_file", "path": "a"}', "operation", {"type": "delete_file", "path": "a"}),
    "tool_search": ('{"query": "mail"}', "arguments", {"query": "mail"}),
}


@pytest.mark.parametrize("kind", NATIVE)
def test_tools_that_the_client_runs_come_back_in_their_own_form(kind: str) -> None:
    arguments, key, value = NATIVE[kind]
    tool = {"type": kind, **({"execution": "client"} if kind == "tool_search" else {})}
    outcome = _run([tool], *_called(kind, arguments))
    (item,) = _items(outcome)
    assert item["type"] == f"{kind}_call" and item[key] == value and item["status"] == "completed"
    # And replayed, it is the same call again.
    output: dict[str, Any] = {"type": f"{kind}_call_output", "call_id": item["call_id"], "output": "done"}
    if kind == "tool_search":
        output = {"type": "tool_search_output", "call_id": item["call_id"], "tools": []}
    items = [{"role": "user", "content": "hi"}, item, output]
    again = _run([tool], {"content": "ok"}, finish="stop", input=items)
    call = again.chat["messages"][1]["tool_calls"][0]["function"]
    replayed = json.loads(call["arguments"])
    assert call["name"] == kind
    assert {name: replayed[name] for name in json.loads(arguments)} == json.loads(arguments)


@pytest.mark.parametrize(
    ("arguments", "action"),
    [
        ('{"command": "ls"}', {"type": "exec", "command": ["ls"], "env": {}}),
        (
            '{"command": ["ls"], "user": "ann", "working_directory": "/tmp", "env": {"A": 1}, "timeout_ms": true}',
            {"type": "exec", "command": ["ls"], "env": {"A": "1"}, "user": "ann", "working_directory": "/tmp"},
        ),
        ('{"command": ["ls"], "user": 5, "env": []}', {"type": "exec", "command": ["ls"], "env": {}}),
    ],
)
def test_a_command_is_what_of_its_arguments_can_be_meant(arguments: str, action: dict[str, Any]) -> None:
    (item,) = _items(_run([{"type": "local_shell"}], *_called("local_shell", arguments)))
    assert (item["type"], item["action"]) == ("local_shell_call", action)


@pytest.mark.parametrize("finish", ["length", "content_filter"])
@pytest.mark.parametrize("arguments", ['{"command": ["rm"', ""])
def test_a_command_that_was_cut_off_is_no_command(arguments: str, finish: str) -> None:
    """Half of one must never be run."""
    outcome = _run([{"type": "local_shell"}], *_called("local_shell", arguments), finish=finish)
    (item,) = _items(outcome)
    assert (item["type"], item["status"], item["arguments"]) == ("function_call", "incomplete", arguments)


@pytest.mark.parametrize("arguments", ['{"command": 5}', '{"command": ""}', "rm -rf", '{"command": ["rm"'])
def test_a_command_that_is_none_is_no_command(arguments: str) -> None:
    (item,) = _items(_run([{"type": "local_shell"}], *_called("local_shell", arguments)))
    assert item["type"] == "function_call" and item["arguments"] == arguments


@pytest.mark.parametrize(
    ("name", "first", "then"), [("sum", "1 + ", "1"), ("sum", '{"input": ', '"1"}'), ("f", "1", "2")]
)
def test_the_servers_own_custom_calls(name: str, first: str, then: str) -> None:
    call = {"index": 0, "id": "c", "type": "custom", "custom": {"name": name, "input": first}}
    more = {"index": 0, "custom": {"input": then}}
    (item,) = _items(_run([GRAMMAR, FUNCTION], {"tool_calls": [call]}, {"tool_calls": [more]}))
    assert (item["type"], item["input"], item["name"]) == ("custom_tool_call", first + then, name)


@pytest.mark.parametrize("call_id", ["x" * 65, 'a"b', "é", ""])
def test_pitfall_47_ids_that_clients_refuse_are_replaced(call_id: str) -> None:
    (item,) = _items(_run([FUNCTION], *_called("f", "{}", call_id=call_id)))
    assert item["call_id"].startswith("call_") and len(item["call_id"]) <= 64


# What the request allows

_ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
_OTHER = {"type": "function", "name": "g"}


def test_pitfall_30_allowed_tools_are_shown_and_enforced() -> None:
    outcome = _run(
        [FUNCTION, _OTHER], *_called("f", "{}"), *_called("g", "{}", index=1, call_id="b"), tool_choice=_ALLOWED
    )
    assert set(_declared(outcome)) == {"f"}
    assert [item["name"] for item in _items(outcome)] == ["f"]
    assert parse_sse(outcome.body)[0]["response"]["tool_choice"] == _ALLOWED


def test_a_model_that_calls_only_what_it_must_not_fails() -> None:
    outcome = _run([FUNCTION, _OTHER], *_called("g", "{}"), tool_choice=_ALLOWED)
    response = check_stream(parse_sse(outcome.body))
    assert response["status"] == "failed" and "'g'" in response["error"]["message"] and response["output"] == []


def test_no_call_gets_through_when_none_is_allowed() -> None:
    outcome = _run([FUNCTION], {"content": "words"}, *_called("f", "{}"), tool_choice="none")
    assert [item["type"] for item in _items(outcome)] == ["message"]


def test_one_call_at_most_without_parallel_calls() -> None:
    outcome = _run(
        [FUNCTION], *_called("f", '{"x":1}'), *_called("f", '{"x":2}', index=1, call_id="b"), parallel_tool_calls=False
    )
    assert outcome.chat["parallel_tool_calls"] is False
    assert [item["arguments"] for item in _items(outcome)] == ['{"x":1}']


@pytest.mark.parametrize(
    ("choice", "chat"),
    [
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        ({"type": "custom", "name": "apply_patch"}, {"type": "function", "function": {"name": "apply_patch"}}),
        (
            {"type": "function", "name": "f", "namespace": "mcp__files"},
            {"type": "function", "function": {"name": "mcp__files__f"}},
        ),
        ({"type": "shell"}, {"type": "function", "function": {"name": "shell"}}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "namespace", "name": "mcp__files"}]},
            "required",
        ),
    ],
)
def test_every_form_of_the_choice(choice: Any, chat: Any) -> None:
    outcome = _run([FUNCTION, CUSTOM, SPACE, {"type": "shell"}], {"content": "x"}, finish="stop", tool_choice=choice)
    assert outcome.chat["tool_choice"] == chat
    assert parse_sse(outcome.body)[0]["response"]["tool_choice"] == choice


@pytest.mark.parametrize(
    "choice", [{"type": "web_search"}, {"type": "mcp", "server_label": "x"}, {"type": "custom", "name": "no"}]
)
def test_a_choice_that_cannot_be_kept_is_refused(choice: Any) -> None:
    outcome = _run([FUNCTION, {"type": "web_search"}], tool_choice=choice)
    assert outcome.head is not None and outcome.head.status == 400 and outcome.json["error"]["param"] == "tool_choice"


# Replay


def test_custom_calls_are_replayed_under_the_same_name() -> None:
    items = [
        {"role": "user", "content": "hi"},
        {"type": "custom_tool_call", "call_id": "c", "name": "exec", "namespace": "functions", "input": 'say("x")'},
        {"type": "custom_tool_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "one"}]},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "two"},
    ]
    chat = _run([], {"content": "ok"}, finish="stop", input=items).chat
    call = chat["messages"][1]["tool_calls"][0]["function"]
    assert call == {"name": "functions__exec", "arguments": json.dumps({"input": 'say("x")'}, separators=(",", ":"))}
    assert chat["messages"][2]["content"] == "one\ntwo"


@pytest.mark.parametrize("arguments", ["{", "[1]", "words", "null"])
def test_arguments_that_no_server_can_parse_are_made_sound(arguments: str) -> None:
    items = [
        {"role": "user", "content": "hi"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments},
        {"type": "function_call_output", "call_id": "c", "output": "failed"},
    ]
    chat = _run([FUNCTION], {"content": "ok"}, finish="stop", input=items).chat
    sent = json.loads(chat["messages"][1]["tool_calls"][0]["function"]["arguments"])
    assert sent == {"invalid_arguments": arguments}


@pytest.mark.parametrize(
    "item",
    [
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
        {"type": "file_search_call", "id": "fs_1", "queries": ["q"], "results": [{"text": "found it", "score": 1}]},
        {"type": "code_interpreter_call", "id": "ci_1", "code": "print(1)", "outputs": [{"type": "logs", "logs": "1"}]},
        {
            "type": "mcp_call",
            "id": "mcp_1",
            "name": "look up",
            "arguments": '{"a":1}',
            "output": "there",
            "server_label": "s",
        },
        {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "s", "tools": [{"name": "t"}]},
        {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "AAAA" * 1000},
    ],
)
def test_hosted_items_of_earlier_turns_are_shown_as_calls_with_results(item: dict[str, Any]) -> None:
    items = [
        {"role": "user", "content": "hi"},
        item,
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "on"},
    ]
    outcome = _run([], {"content": "ok"}, finish="stop", input=items)
    roles = [message["role"] for message in outcome.chat["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]
    assert "AAAAAAAA" not in json.dumps(outcome.chat)
    stored = json.loads(outcome.records[0].input_items[1].body)
    assert {**stored, "id": item["id"]} == item


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"name": "roll", "server_label": "dice"}, "dice__roll"),
        ({"name": "roll"}, "roll"),
        ({"name": "look up", "server_label": "s"}, flat_name("look up", "s")),
        ({"server_label": "dice"}, "mcp"),
    ],
)
def test_an_mcp_call_of_an_earlier_turn_has_the_name_its_tool_has_now(fields: dict[str, Any], name: str) -> None:
    call = {"type": "mcp_call", "id": "mcp_1", "arguments": "{}", "output": "4", **fields}
    outcome = _run([], {"content": "ok"}, finish="stop", input=[{"role": "user", "content": "hi"}, call])
    assert outcome.chat["messages"][1]["tool_calls"][0]["function"]["name"] == name


# Whole requests of Codex


@pytest.mark.parametrize(
    ("case", "name", "arguments", "expected"),
    [
        ("codex_cli-apply_patch", "apply_patch", {"input": PATCH}, ("custom_tool_call", "apply_patch", None)),
        ("codex_cli-code_mode", "functions__exec", {"input": "1"}, ("custom_tool_call", "exec", "functions")),
        ("codex_cli-code_mode", "functions__wait", {"cell_id": "1"}, ("function_call", "wait", "functions")),
        ("codex_cli-shell_tool", "exec_command", {"cmd": "ls"}, ("function_call", "exec_command", None)),
    ],
)
def test_codex_gets_its_calls_back_as_it_declared_them(
    case: str, name: str, arguments: dict[str, Any], expected: tuple[str, str, str | None]
) -> None:
    request = json.loads((CLIENTS / f"{case}.json").read_text())["requests"][0]["json"]
    outcome = run(request, [_stream(*_called(name, json.dumps(arguments)))])
    check_chat_request(outcome.chat)
    assert name in _declared(outcome)
    (item,) = _items(outcome)
    assert (item["type"], item["name"], item.get("namespace")) == expected


# The events of calls in their own form (grammar: observed from OpenAI's service)


def _kinds(outcome: Outcome) -> list[str]:
    kinds = [event["type"].removeprefix("response.") for event in parse_sse(outcome.body)]
    return kinds[kinds.index("output_item.added") : kinds.index("output_item.done") + 1]


def test_a_shell_call_tells_its_commands_one_by_one() -> None:
    outcome = _run([{"type": "shell"}], *_called("shell", '{"commands": ["ls", "pwd"], "timeout_ms": 9}'))
    one = ["shell_call_command.added", "shell_call_command.delta", "shell_call_command.done"]
    assert _kinds(outcome) == ["output_item.added", *one, *one, "output_item.done"]
    events = [event for event in parse_sse(outcome.body) if "command_index" in event]
    assert all(set(event) & {"item_id"} == set() and event["output_index"] == 0 for event in events)
    assert [event["command_index"] for event in events] == [0, 0, 0, 1, 1, 1]
    added = next(event["item"] for event in parse_sse(outcome.body) if "item" in event)
    assert added["action"] == {"commands": [], "timeout_ms": None, "max_output_length": None}
    assert added["environment"] == {"type": "local"}


def test_a_patch_tells_its_diff() -> None:
    arguments = json.dumps({"type": "create_file", "path": "a", "diff": "+x\n"})
    outcome = _run([{"type": "apply_patch"}], *_called("apply_patch", arguments))
    diff = ["apply_patch_call_operation_diff.delta", "apply_patch_call_operation_diff.done"]
    assert _kinds(outcome) == ["output_item.added", *diff, "output_item.done"]
    items = [event["item"] for event in parse_sse(outcome.body) if "item" in event]
    assert items[0]["operation"] == {"type": "create_file", "diff": "", "path": "a"}
    assert items[1]["operation"] == {"type": "create_file", "diff": "+x\n", "path": "a"}


def test_a_patch_without_a_line_has_no_delta_of_any() -> None:
    arguments = json.dumps({"type": "update_file", "path": "a", "diff": ""})
    outcome = _run([{"type": "apply_patch"}], *_called("apply_patch", arguments))
    assert _kinds(outcome) == ["output_item.added", "apply_patch_call_operation_diff.done", "output_item.done"]
    arguments = json.dumps({"type": "delete_file", "path": "a"})
    outcome = _run([{"type": "apply_patch"}], *_called("apply_patch", arguments))
    assert _kinds(outcome) == ["output_item.added", "output_item.done"]


@pytest.mark.parametrize("kind", ["local_shell", "tool_search"])
def test_other_calls_tell_nothing_in_between(kind: str) -> None:
    tool = {"type": kind, **({"execution": "client"} if kind == "tool_search" else {})}
    outcome = _run([tool], *_called(kind, NATIVE[kind][0]))
    assert _kinds(outcome) == ["output_item.added", "output_item.done"]
    added = next(event["item"] for event in parse_sse(outcome.body) if "item" in event)
    assert added["status"] == "in_progress"
    assert added["arguments"] == {} if kind == "tool_search" else added["action"]["command"] == []


@pytest.mark.parametrize(
    "arguments",
    ['{"command": ["\\ud83d"]}', '{"command": ["ls"], "timeout_ms": 1e999}', '{"command": ["ls"], "timeout_ms": 9e99}'],
)
def test_strange_commands_do_not_break_the_stream(arguments: str) -> None:
    outcome = _run([{"type": "local_shell"}], *_called("local_shell", arguments))
    assert check_stream(parse_sse(outcome.body))["status"] == "completed"


@pytest.mark.parametrize("text", ["a\\ud83d", "\\\\\\ud83d\\n", "\U0001f600\\\U0001f600", "\\", '"', "\\u"])
def test_an_input_with_backslashes_is_the_same_at_every_cut(text: str) -> None:
    whole = json.dumps({"input": text})
    for first in range(len(whole) + 1):
        for second in range(first, len(whole) + 1):
            decoder = CustomInput()
            pieces = (whole[:first], whole[first:second], whole[second:])
            out = b"".join(decoder.feed(fragment_of(piece)) for piece in pieces) + decoder.end()
            assert (text_of(out), decoder.complete) == (text, True)


def test_a_search_found_tools_of_servers_by_their_label() -> None:
    sent = [
        {"type": "mcp", "server_label": "a", "allowed_tools": ["x", "y"]},
        {"type": "mcp", "server_label": "b", "allowed_tools": None},
        {"type": "mcp", "allowed_tools": ["z"]},
        {"type": "mcp", "server_label": "c", "allowed_tools": ["x"]},
        FUNCTION,
    ]
    assert found_on_servers(decode_tools("tools", raw(sent))) == [("a", "x"), ("a", "y"), ("c", "x")]


def test_names_of_a_namespace_are_unique() -> None:
    def refused(*tools: dict[str, Any]) -> Any:
        return _run([{**SPACE, "tools": list(tools)}], {"content": "ok"}, finish="stop").json["error"]

    twice = refused(FUNCTION, CUSTOM, {**CUSTOM, "name": "f"})
    assert twice["param"] == "tools[0].tools[2].name" and "'f'" in twice["message"]
    assert refused({"type": "shell"})["param"] == "tools[0].tools[0].type"
    assert refused({**FUNCTION, "parameters": []})["param"] == "tools[0].tools[0].parameters"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("web_search_preview", "web_search"), ("web_search", "web_search"), ("file_search", "file_search")],
)
def test_a_choice_means_a_hosted_tool_whatever_its_version(kind: str, name: str) -> None:
    assert hosted_name(kind) == name
