"""Part A, requests to chat requests: declarations, choices, calls and their outputs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.pitfalls.asking import FUNCTION, answered, call, call_item, chain, chat, error, final, output_item
from tests.pitfalls.asking import streamed as stream
from tests.support.exchanges import JSON, run

USER = {"role": "user", "content": "hi"}
CUSTOM = {"type": "custom", "name": "patch", "description": "Patch files."}
PATCH = '*** Begin Patch\n*** Update File: a"b\\c\n@@\n-\told\n+new é\n*** End Patch\n'
SPACE = {"type": "namespace", "name": "mcp__files", "description": "Files.", "tools": [FUNCTION]}
HOSTED = ["web_search", "web_search_preview", "image_generation", "file_search", "computer_use_preview", "tool_search"]


def _declared(made: dict[str, Any]) -> dict[str, Any]:
    return {tool["function"]["name"]: tool["function"] for tool in made.get("tools", ())}


def _roles(made: dict[str, Any]) -> list[str]:
    return [message["role"] for message in made["messages"]]


def _ignored(**fields: Any) -> str:
    body = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}'
    outcome = run({"model": "m", "input": "hi", **fields}, [body], headers=JSON)
    assert outcome.head is not None and outcome.head.status == 200
    return dict(outcome.head.headers).get("antiphon-ignored", "")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"x": {"type": "string"}}},
        {"type": "object", "properties": {}, "additionalProperties": True, "required": []},
        {"type": "object", "properties": {"x": {"type": "object"}}, "additionalProperties": {"type": "string"}},
    ],
)
def test_pitfall_6_a_schema_is_the_clients_own(schema: dict[str, Any]) -> None:
    for strict in ({}, {"strict": True}, {"strict": False}):
        made = chat(tools=[{"type": "function", "name": "f", "parameters": schema, **strict}])
        assert _declared(made)["f"]["parameters"] == schema


@pytest.mark.parametrize("strict", [True, False, None])
def test_pitfall_7_strict_is_what_the_client_said(strict: bool | None) -> None:
    tool = FUNCTION if strict is None else {**FUNCTION, "strict": strict}
    sent = _declared(chat(tools=[tool]))["f"]
    assert sent.get("strict", "absent") == ("absent" if strict is None else strict)
    assert answered({"content": "x"}, tools=[tool])["tools"][0]["strict"] is strict


def test_pitfall_8_references_and_definitions_reach_the_backend() -> None:
    inner = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/node"}}, "$defs": {"node": inner}}
    space = {**SPACE, "tools": [{"type": "function", "name": "g", "parameters": schema}]}
    made = chat(tools=[{**FUNCTION, "parameters": schema}, space])
    assert [one["parameters"] for one in _declared(made).values()] == [schema, schema]


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, "absent", {"type": "object", "properties": {}}])
def test_pitfall_9_a_tool_without_arguments_is_a_whole_declaration(parameters: Any) -> None:
    tool = {"type": "function", "name": "f", **({} if parameters == "absent" else {"parameters": parameters})}
    assert _declared(chat(tools=[tool]))["f"]["parameters"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize("arguments", ["", "{}", None, "absent"])
def test_pitfall_9_a_call_without_arguments_goes_back_as_an_empty_object(arguments: Any) -> None:
    item = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": arguments}
    if arguments == "absent":
        del item["arguments"]
    made = chat(input=[USER, item, output_item()])
    assert made["messages"][1]["tool_calls"][0]["function"]["arguments"] == "{}"


def test_pitfall_9_array_arguments_are_untouched() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "array", "items": {"type": "string"}}}}
    assert _declared(chat(tools=[{**FUNCTION, "parameters": schema}]))["f"]["parameters"] == schema
    made = chat(input=[USER, call_item(arguments='{"x": ["a", "b"]}'), output_item()])
    assert made["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"x": ["a", "b"]}'


@pytest.mark.parametrize("kind", HOSTED)
def test_pitfall_23_only_functions_reach_the_upstream(kind: str) -> None:
    made = chat(tools=[FUNCTION, {"type": kind}])
    assert [tool["type"] for tool in made["tools"]] == ["function"]
    assert f"tools.{kind}" in _ignored(tools=[FUNCTION, {"type": kind}])
    # Alone it leaves no tools, and then no choice among them.
    made = chat(tools=[{"type": kind}], tool_choice="auto", parallel_tool_calls=True)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(made)


def test_pitfall_24_namespaces_are_functions_for_the_upstream_and_calls_come_back_in_them() -> None:
    made = chat(tools=[SPACE])
    assert list(_declared(made)) == ["mcp__files__f"]
    outcome = stream(call('{"x":1}', "mcp__files__f", id="a", index=0), finish="tool_calls", tools=[SPACE])
    (item,) = final(outcome)["output"]
    assert (item["name"], item["namespace"]) == ("f", "mcp__files")


def test_pitfall_25_long_names_are_short_for_the_model_and_whole_for_the_client() -> None:
    space = {**SPACE, "name": "mcp__" + "a" * 60, "tools": [FUNCTION, {**FUNCTION, "name": "g"}]}
    first, second = _declared(chat(tools=[space]))
    assert len(first) == len(second) == 64 and first != second
    assert list(_declared(chat(tools=[space], input="other"))) == [first, second]
    outcome = stream(call('{"x":1}', second, id="a", index=0), finish="tool_calls", tools=[space])
    assert final(outcome)["output"][0]["name"] == "g"


def test_pitfall_25_two_tools_of_one_name_are_refused() -> None:
    twin = {**FUNCTION, "name": "mcp__files__f"}
    assert "mcp__files__f" in error(tools=[SPACE, twin])["message"]


def test_pitfall_26_custom_tools_are_offered_and_called_as_custom_tools() -> None:
    assert list(_declared(chat(tools=[CUSTOM]))) == ["patch"]
    arguments = json.dumps({"input": PATCH})
    outcome = stream(call(arguments, "patch", id="a", index=0), finish="tool_calls", tools=[CUSTOM])
    (item,) = final(outcome)["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", PATCH)


@pytest.mark.parametrize("cut", range(1, 14))
def test_pitfall_27_half_of_a_custom_input_is_never_completed(cut: int) -> None:
    arguments = json.dumps({"input": "rm -r"})
    assert len(arguments) > cut
    outcome = stream(call(arguments[:-cut], "patch", id="a", index=0), finish="tool_calls", tools=[CUSTOM])
    found = final(outcome)
    assert found["status"] == "failed" and found["output"][0]["status"] == "incomplete"


def test_pitfall_28_a_grammar_stands_in_the_description_and_delimiters_survive_both_ways() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch" LF'}
    tool = {**CUSTOM, "format": grammar}
    assert grammar["definition"] in _declared(chat(tools=[tool]))["patch"]["description"]
    item = {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": PATCH}
    made = chat(input=[USER, item, {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"}], tools=[tool])
    assert json.loads(made["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"input": PATCH}


def test_pitfall_29_a_custom_output_belongs_to_its_call_id_whatever_its_own_id_is() -> None:
    items = [
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "a", "name": "patch", "input": "one"},
        {"type": "custom_tool_call", "id": "ctc_2", "call_id": "b", "name": "patch", "input": "two"},
        {"type": "custom_tool_call_output", "id": "ctc_1", "call_id": "b", "output": "of two"},
        {"type": "custom_tool_call_output", "id": "ctc_2", "call_id": "a", "output": "of one"},
    ]
    made = chat(input=[USER, *items])
    found = {message["tool_call_id"]: message["content"] for message in made["messages"][2:]}
    assert found == {"a": "of one", "b": "of two"}


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("required", "required"),
        ("none", "none"),
        ("auto", "auto"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        ({"type": "custom", "name": "patch"}, {"type": "function", "function": {"name": "patch"}}),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}, "required"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "patch"}]}, "auto"),
    ],
)
def test_pitfall_30_a_choice_is_never_weakened(choice: Any, sent: Any) -> None:
    made = chat(tools=[FUNCTION, CUSTOM], tool_choice=choice)
    assert made["tool_choice"] == sent
    name = "patch" if "patch" in str(choice) else "f"
    made_call = {"id": "a", "type": "function", "function": {"name": name, "arguments": '{"input":"x"}'}}
    said = {"content": "x"} if choice == "none" else {"content": None, "tool_calls": [made_call]}
    echo = answered(said, tools=[FUNCTION, CUSTOM], tool_choice=choice)["tool_choice"]
    assert echo == choice


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "mcp", "server_label": "s"},
        {"type": "function", "name": "unknown"},
        {"type": "custom", "name": "f"},
        {"type": "something"},
        "any",
        7,
    ],
)
def test_pitfall_30_a_choice_that_cannot_be_kept_is_refused(choice: Any) -> None:
    assert error(tools=[FUNCTION], tool_choice=choice)["param"].startswith("tool_choice")


def test_pitfall_30_allowed_tools_bind_the_model() -> None:
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
    other = {**FUNCTION, "name": "other"}
    calls = [call("{}", "other", id="a", index=0), call('{"x":1}', "f", id="b", index=1)]
    found = final(stream(*calls, finish="tool_calls", tools=[FUNCTION, other], tool_choice=choice))
    assert [item["name"] for item in found["output"]] == ["f"]


def test_pitfall_31_the_object_form_of_auto_does_not_force_a_call() -> None:
    choice = {"type": "allowed_tools", "tools": [{"type": "function", "name": "f"}]}
    assert chat(tools=[FUNCTION], tool_choice=choice)["tool_choice"] == "auto"
    assert answered({"content": "x"}, tools=[FUNCTION], tool_choice=choice)["tool_choice"]["mode"] == "auto"


def test_pitfall_32_an_earlier_file_search_keeps_its_name() -> None:
    item = {"type": "file_search_call", "id": "fs_1", "queries": ["q"], "results": [{"text": "found", "score": 1}]}
    made = chat(input=[USER, item, {"role": "assistant", "content": "so"}, USER], tools=[{"type": "file_search"}])
    assert made["messages"][1]["tool_calls"][0]["function"]["name"] == "file_search"
    assert "found" in made["messages"][2]["content"]


@pytest.mark.parametrize("tool", [{"type": "mcp", "server_label": "s", "server_url": "https://x"}])
def test_pitfall_33_mcp_tools_are_not_lost_in_silence(tool: dict[str, Any]) -> None:
    found = error(tools=[FUNCTION, tool])
    assert found["code"] == "unsupported_tool" and found["param"] == "tools[1].type"


def test_pitfall_34_parallel_calls_are_one_assistant_message() -> None:
    items = [
        {"role": "assistant", "content": "I look."},
        call_item("a"),
        {"type": "custom_tool_call", "call_id": "b", "name": "patch", "input": "x"},
        output_item("a"),
        {"type": "custom_tool_call_output", "call_id": "b", "output": "y"},
    ]
    made = chat(input=[USER, *items])
    assert _roles(made) == ["user", "assistant", "tool", "tool"]
    assert made["messages"][1]["content"] == "I look." and len(made["messages"][1]["tool_calls"]) == 2


@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_pitfall_35_nothing_stands_between_a_call_and_its_outputs(role: str) -> None:
    between = {"role": role, "content": "wait"}
    made = chat(input=[USER, call_item("a"), between, call_item("b"), output_item("a"), between, output_item("b")])
    messages = made["messages"]
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            assert messages[number - 1]["role"] in ("assistant", "tool")
    assert json.dumps(messages).count("wait") == 2


def test_pitfall_36_an_output_without_a_call_is_refused_and_so_is_a_call_without_output() -> None:
    found = error(input=[USER, output_item("nobody")])
    assert found["param"] == "input[1]" and "nobody" in found["message"]
    assert "call_1" in error(input=[USER, call_item()])["message"]


def test_pitfall_36_an_output_finds_its_call_in_the_stored_turn() -> None:
    made = chat(context=chain(USER, call_item("a")), previous_response_id="resp_before", input=[output_item("a")])
    assert _roles(made) == ["user", "assistant", "tool"]
    outcome = run(
        {"model": "m", "input": [output_item("b")], "previous_response_id": "resp_before"},
        context=chain(USER, {"role": "assistant", "content": "no call"}),
    )
    assert not outcome.calls and "b" in outcome.json["error"]["message"]


def test_pitfall_36_two_outputs_of_one_call_are_one_message() -> None:
    items = [USER, call_item("a"), call_item("b"), output_item("a", "one"), output_item("b"), output_item("a", "two")]
    made = chat(input=items)
    assert _roles(made) == ["user", "assistant", "tool", "tool"]
    assert made["messages"][2]["content"] == "one\ntwo"
