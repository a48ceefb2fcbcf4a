"""Requests in forms that few clients send: each is what it means, or a 400 that names its place.

Refusals with a story of their own are in `test_what_is_refused.py`.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from antiphon.engine.ports.actions import Chain, Context, StoredItem
from tests.support.exchanges import JSON, Outcome, run
from tests.support.hosted_tools import ScriptedTools
from tests.support.strict_chat import check_chat_request

_OK = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}'
_USER = {"role": "user", "content": "hi"}
_F = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
_C = {"type": "custom", "name": "c"}


def _ask(profile: str = "generic", **fields: Any) -> Outcome:
    options = {name: fields.pop(name) for name in ("context", "tool_types") if name in fields}
    outcome = run({"model": "m", "input": "hi", **fields}, [_OK], headers=JSON, profile=profile, **options)
    if outcome.calls:
        check_chat_request(outcome.chat)
    return outcome


def _error(profile: str = "generic", **fields: Any) -> tuple[str | None, str | None]:
    outcome = _ask(profile, **fields)
    assert outcome.head is not None and outcome.head.status == 400 and not outcome.calls, outcome.body
    return outcome.json["error"]["param"], outcome.json["error"]["code"]


def _said(*items: dict[str, Any], profile: str = "generic", **fields: Any) -> list[dict[str, Any]]:
    outcome = _ask(profile, input=list(items), **fields)
    assert outcome.calls, outcome.body
    messages: list[dict[str, Any]] = outcome.chat["messages"]
    return messages


@pytest.mark.parametrize("name", ["temperature", "top_p", "max_output_tokens", "seed"])
def test_a_number_beyond_all_bounds_is_refused_by_its_name(name: str) -> None:
    outcome = run(b'{"model":"m","input":"hi","%b":1e999}' % name.encode(), [_OK], headers=JSON)
    assert outcome.head is not None and outcome.head.status == 400
    error = outcome.json["error"]
    assert (error["param"], error["message"]) == (name, f"Invalid type for '{name}': number out of range.")


def test_an_empty_extra_body_is_none() -> None:
    outcome = _ask(extra_body=None, temperature=0.5)
    assert outcome.chat["temperature"] == 0.5 and "extra_body" not in outcome.chat
    assert outcome.head is not None and "antiphon-ignored" not in dict(outcome.head.headers)


# Tools


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ({}, "tools"),
        ([5], "tools[0]"),
        ([{"type": "namespace", "tools": []}], "tools[0].name"),
        ([{"type": "namespace", "name": "", "tools": []}], "tools[0].name"),
        ([{"type": "namespace", "name": "n" * 257, "tools": []}], "tools[0].name"),
        ([{"type": "namespace", "name": "n", "tools": {}}], "tools[0].tools"),
        ([{"type": "namespace", "name": "n", "tools": [{"type": "shell"}]}], "tools[0].tools[0].type"),
        ([{"type": "namespace", "name": "n", "tools": [_F, {**_C, "name": "f"}]}], "tools[0].tools[1].name"),
        ([{"type": "namespace", "name": "n", "tools": [{**_F, "name": ""}]}], "tools[0].tools[0].name"),
        ([{**_F, "parameters": []}], "tools[0].parameters"),
    ],
)
def test_tools_that_are_none_name_their_place(tools: Any, param: str) -> None:
    assert _error(tools=tools)[0] == param


def _declared(outcome: Outcome) -> list[str]:
    return [tool["function"]["name"] for tool in outcome.chat.get("tools", ())]


@pytest.mark.parametrize(
    ("callers", "called"),
    [(None, True), ([], True), (["direct"], True), (["direct", "programmatic"], True), (["programmatic"], False)],
)
def test_a_tool_for_programs_alone_is_not_shown_to_the_model_and_named(callers: Any, called: bool) -> None:
    """Nothing here runs the programs that could call it."""
    own = {**_F, "name": "own", "allowed_callers": callers}
    space = {"type": "namespace", "name": "n", "tools": [{**_F, "name": "own", "allowed_callers": callers}, _F]}
    outcome = _ask(tools=[own, _F, space])
    assert _declared(outcome) == (["own", "f", "n__own", "n__f"] if called else ["f", "n__f"])
    assert outcome.head is not None
    ignored = dict(outcome.head.headers).get("antiphon-ignored", "")
    if called:
        # Its other callers are named: nothing of theirs can happen.
        assert ignored == ("tools.function.allowed_callers" if callers and len(callers) > 1 else "")
    else:
        assert ignored == "tools[0].allowed_callers, tools[2].tools[0].allowed_callers"


def test_the_tools_of_a_namespace_count_as_tools() -> None:
    space = {"type": "namespace", "name": "n", "tools": [{**_F, "name": f"f{number}"} for number in range(1_024)]}
    assert _error(tools=[space]) == ("tools", "array_above_max_length")


@pytest.mark.parametrize("environment", [5, "local", {"type": 5}, {"type": "container_auto"}])
def test_a_shell_whose_environment_is_not_the_clients_is_left_out(environment: Any) -> None:
    outcome = _ask(tools=[{"type": "shell", "environment": environment}, _F])
    assert _declared(outcome) == ["f"]
    assert outcome.head is not None and ("antiphon-ignored", "tools.shell") in outcome.head.headers


# The choice among them


_SPACE = {"type": "namespace", "name": "n", "tools": [_F]}
_SEARCH = {"type": "file_search", "vector_store_ids": ["vs_1"]}
_DICE = {"type": "mcp", "server_label": "dice", "server_url": "https://d.example"}


def _allowed(*tools: dict[str, Any], mode: str | None = "auto") -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": mode, "tools": list(tools)}


@pytest.mark.parametrize(
    ("choice", "shown", "sent"),
    [
        (_allowed({"type": "namespace", "name": "n"}), ["n__f"], "auto"),
        (_allowed({"type": "shell"}, mode="required"), ["shell"], "required"),
        (_allowed({"type": "shell"}, {"type": "function", "name": "f"}, mode=None), ["f", "shell"], "auto"),
        # What cannot run here is left out of the choice as it is of the tools.
        (_allowed({"type": "image_generation"}, {"type": "function", "name": "f"}), ["f"], "auto"),
        ({"type": "shell"}, ["f", "shell", "n__f"], {"type": "function", "function": {"name": "shell"}}),
    ],
)
def test_what_a_choice_allows_is_what_the_model_is_shown(choice: Any, shown: list[str], sent: Any) -> None:
    outcome = _ask(tools=[_F, {"type": "shell"}, _SPACE, {"type": "image_generation"}], tool_choice=choice)
    assert sorted(_declared(outcome)) == sorted(shown) and outcome.chat["tool_choice"] == sent


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        (_allowed(), "tool_choice.tools"),
        (_allowed({"type": "image_generation"}), "tool_choice.tools"),
        (_allowed({"type": "namespace", "name": "x"}), "tool_choice.tools[0]"),
        (_allowed({"type": "function", "name": "f"}, {"type": "shell"}), "tool_choice.tools[1]"),
        (_allowed({"type": "function", "name": "f"}, mode="never"), "tool_choice.mode"),
        ({"type": "shell"}, "tool_choice"),
        ({"type": "image_generation"}, "tool_choice"),
    ],
)
def test_a_choice_of_nothing_that_is_there_names_its_place(choice: Any, param: str) -> None:
    assert _error(tools=[_F, _SPACE], tool_choice=choice)[0] == param


@pytest.mark.parametrize(
    ("choice", "shown"),
    [
        ({"type": "mcp", "server_label": "dice"}, ["dice__roll"]),
        ({"type": "mcp", "server_label": "dice", "name": "roll"}, ["dice__roll"]),
        (_allowed({"type": "mcp", "server_label": "dice"}), ["dice__roll"]),
        (_allowed({"type": "file_search"}, {"type": "function", "name": "f"}), ["f", "file_search"]),
    ],
)
def test_a_choice_may_name_what_runs_here(choice: dict[str, Any], shown: list[str]) -> None:
    tools = [_F, _SEARCH, {**_DICE, "require_approval": "never"}]
    outcome = run(
        {"model": "m", "input": "hi", "tools": tools, "tool_choice": choice}, [_OK], headers=JSON, tools=ScriptedTools()
    )
    # One tool that must be called is named to the server, whatever else it is shown.
    named = outcome.chat["tool_choice"]
    called = [named["function"]["name"]] if isinstance(named, dict) else sorted(_declared(outcome))
    assert called == shown


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "file_search"},
        {"type": "mcp", "server_label": "cards"},
        {"type": "mcp"},
        _allowed({"type": "web_search"}),
        _allowed({"type": "mcp", "server_label": "cards"}),
    ],
)
def test_a_choice_of_what_could_run_here_and_was_not_declared_is_refused(choice: dict[str, Any]) -> None:
    param, code = _error(tools=[_F, _DICE], tool_choice=choice, tool_types=ScriptedTools.types)
    assert param is not None and param.startswith("tool_choice") and code == "invalid_value"


def test_a_call_that_must_be_made_needs_a_tool_that_history_may_have_brought() -> None:
    brought = {"type": "additional_tools", "id": "at_1", "role": "developer", "tools": [_F]}
    request = {"tool_choice": "required", "previous_response_id": "resp_0"}
    with_tools = Context(chain=Chain((StoredItem("at_1", "additional_tools", json.dumps(brought).encode()),)))
    assert _ask(**request, context=with_tools).chat["tool_choice"] == "required"
    assert _error(**request, context=Context(chain=Chain(()))) == ("tool_choice", "invalid_value")


# Content


@pytest.mark.parametrize(
    ("part", "param", "code"),
    [
        ({"type": "input_file"}, "file_data", "missing_required_parameter"),
        ({"type": "input_file", "file_data": 5}, "file_data", "missing_required_parameter"),
        ({"type": "input_file", "filename": "a.txt", "file_data": "AA"}, "file_data", "invalid_value"),
        ({"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,?"}, "file_data", None),
        ({"type": "input_image"}, "image_url", "missing_required_parameter"),
        ({"type": "input_image", "image_url": ""}, "image_url", "missing_required_parameter"),
        ({"type": "input_audio"}, "input_audio", "missing_required_parameter"),
        ({"type": "input_audio", "input_audio": "AAAA"}, "input_audio", "missing_required_parameter"),
    ],
)
def test_a_part_without_its_content_names_what_it_misses(part: dict[str, Any], param: str, code: str | None) -> None:
    told = _error("openai", input=[{"role": "user", "content": [part]}])
    assert told == (f"input[0].content[0].{param}", code or "invalid_value")


def test_a_picture_in_chats_form_whose_detail_is_no_word_cannot_be_read() -> None:
    part = {"type": "input_image", "image_url": {"url": "https://a.example/x.png", "detail": 5}}
    assert _error(input=[{"role": "user", "content": [part]}]) == ("input[0]", "invalid_value")


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_message_without_parts_is_an_empty_one(role: str) -> None:
    assert _said({"role": role, "content": []}, _USER)[0] == {"role": role, "content": ""}


_CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("output", "param", "code"),
    [
        ({}, "output", "missing_required_parameter"),
        ({"output": None}, "output", "missing_required_parameter"),
        ({"output": 5}, "output", "invalid_type"),
        ({"output": True}, "output", "invalid_type"),
        ({"output": [5]}, "output[0]", "invalid_type"),
        ({"output": [{"type": "input_video"}]}, "output", "invalid_value"),
    ],
)
def test_an_output_that_is_none_names_its_place(output: dict[str, Any], param: str, code: str) -> None:
    item = {"type": "function_call_output", "call_id": "a", **output}
    assert _error(input=[_USER, _CALL, item]) == (f"input[2].{param}", code)


def test_a_file_of_text_in_an_output_is_text() -> None:
    data = base64.b64encode(b"a,b").decode()
    parts = [
        {"type": "input_text", "text": "Here:"},
        {"type": "input_file", "filename": "a.csv", "file_data": f"data:text/csv;base64,{data}"},
    ]
    told = _said(_USER, _CALL, {"type": "function_call_output", "call_id": "a", "output": parts})[-1]
    assert (told["role"], told["content"]) == ("tool", "Here:\nFile a.csv:\na,b")


# Calls and outputs of tools that the client runs


def test_arguments_as_an_object_are_told_as_text() -> None:
    made = _said(
        _USER, {**_CALL, "arguments": {"x": [1, "é"]}}, {"type": "function_call_output", "call_id": "a", "output": ""}
    )
    assert json.loads(made[1]["tool_calls"][0]["function"]["arguments"]) == {"x": [1, "é"]}


def test_arguments_that_are_neither_text_nor_an_object_are_refused() -> None:
    item = {**_CALL, "arguments": [1]}
    assert _error(input=[_USER, item]) == ("input[1].arguments", "invalid_type")
    custom = {"type": "custom_tool_call", "call_id": "a", "name": "c", "input": {"x": 1}}
    assert _error(input=[_USER, custom]) == ("input[1].input", "invalid_type")


@pytest.mark.parametrize(
    ("kind", "action"),
    [("local_shell_call", {}), ("local_shell_call", {"action": "ls"}), ("shell_call", {"action": None})],
)
def test_a_call_without_its_action_has_no_arguments(kind: str, action: dict[str, Any]) -> None:
    output = {"type": f"{kind}_output", "call_id": "a", "output": "done"}
    made = _said(_USER, {"type": kind, "call_id": "a", **action}, output)
    assert made[1]["tool_calls"][0]["function"] == {"name": kind.removesuffix("_call"), "arguments": "{}"}


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ([], "(no output)"),
        ([5, {"stdout": "a", "stderr": "b", "outcome": {"type": "exit", "exit_code": 1}}], "a\nb\n(exit code 1)"),
        ([{"stdout": "a", "outcome": {"type": "timeout"}}, {"stdout": "b"}], "a\n(timed out)\nb"),
        ([{"stderr": "b", "outcome": {"type": "exit"}}, {"stdout": "", "outcome": "exit"}], "b"),
    ],
)
def test_what_a_shell_put_out_is_told_as_text(outputs: list[Any], text: str) -> None:
    call = {"type": "shell_call", "call_id": "a", "action": {"commands": ["ls"]}}
    told = _said(_USER, call, {"type": "shell_call_output", "call_id": "a", "output": outputs})[-1]
    assert told["role"] == "tool" and told["content"].rstrip("\n") == text


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ({"status": "completed", "output": "1 file"}, "The patch was applied.\n1 file"),
        ({"status": "failed"}, "The patch could not be applied."),
        ({"output": "why not"}, "why not"),
        ({}, "Done."),
        ({"status": "completed", "output": None}, "The patch was applied."),
    ],
)
def test_how_a_patch_went_is_told_in_words(output: dict[str, Any], text: str) -> None:
    call = {
        "type": "apply_patch_call",
        "call_id": "a",
        "operation": {"type": "delete_file", "path": "a.txt"},
    }
    told = _said(_USER, call, {"type": "apply_patch_call_output", "call_id": "a", **output})[-1]
    assert (told["role"], told["content"]) == ("tool", text)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ('{"x":1}', '{"x":1}'),
        ("not json", '{"invalid_arguments":"not json"}'),
        ("[1]", '{"invalid_arguments":"[1]"}'),
        ("", "{}"),
        (None, "{}"),
        ({"x": 1}, '{"x":1}'),
    ],
)
def test_arguments_of_an_mcp_call_of_an_earlier_turn_are_an_object(arguments: Any, told: str) -> None:
    item = {"type": "mcp_call", "id": "mcp_1", "name": "roll", "server_label": "dice", "arguments": arguments}
    made = _said(_USER, {**item, "output": "6"})
    assert made[1]["tool_calls"][0]["function"] == {"name": "dice__roll", "arguments": told}
