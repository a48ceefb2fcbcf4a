"""Requests that could only be answered wrongly, each refused with a message that says what to change."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Struct

from antiphon.api.conversations import CreateConversation
from antiphon.api.http import ApiRequest, read_body
from antiphon.errors import InvalidRequest
from tests.support.exchanges import JSON, Outcome, run
from tests.support.judge import check_response

USER = {"role": "user", "content": "hi"}
OK = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}'
PARAMETERS = {"type": "object", "properties": {}}


class _Made(Struct):
    name: str


class _Rows(Struct):
    rows: list[dict[str, str]]


def _ask(**fields: Any) -> Outcome:
    return run({"model": "m", "input": "hi", **fields}, [OK], headers=JSON)


def _error(**fields: Any) -> dict[str, Any]:
    outcome = _ask(**fields)
    assert outcome.head is not None and outcome.head.status == 400 and not outcome.calls, outcome.body
    found: dict[str, Any] = outcome.json["error"]
    return found


@pytest.mark.parametrize(
    "items",
    [
        [{"type": "reasoning", "summary": []}],
        [{"type": "additional_tools", "role": "developer", "tools": []}, {"type": "reasoning", "summary": []}],
        [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "thought"}]}],
    ],
)
def test_input_that_says_nothing_is_refused(items: list[dict[str, Any]]) -> None:
    found = _error(input=items)
    assert found["param"] == "input" and "no message" in found["message"]
    # With something to answer it is fine.
    assert _ask(input=[*items, USER]).calls


@pytest.mark.parametrize("texts", [("",), ("", ""), ("rule", "")])
def test_empty_instructions_are_no_system_message(texts: tuple[str, ...]) -> None:
    items = [{"role": "system", "content": text} for text in texts]
    said = [text for text in texts if text]
    outcome = _ask(instructions="", input=[*items, USER])
    assert [message["content"] for message in outcome.chat["messages"]] == [*said, "hi"]
    assert outcome.json["instructions"] == ""
    check_response(outcome.json)


def test_a_reference_without_an_id_misses_its_id() -> None:
    found = _error(input=[USER, {"type": "item_reference"}])
    assert (found["param"], found["code"]) == ("input[1].id", "missing_required_parameter")


def test_a_message_without_a_role_misses_its_role() -> None:
    found = _error(input=[{"type": "message", "content": "x"}])
    assert (found["param"], found["code"]) == ("input[0].role", "missing_required_parameter")
    found = _error(input=[{"role": "tool", "content": "x", "tool_call_id": "a"}])
    assert found["param"] == "input[0].role" and "'tool'" in found["message"] and "developer" in found["message"]


def test_a_part_without_a_type_misses_its_type() -> None:
    found = _error(input=[{"role": "user", "content": [{"text": "x"}]}])
    assert (found["param"], found["code"]) == ("input[0].content[0].type", "missing_required_parameter")


def test_a_detail_becomes_one_of_chats() -> None:
    part = {"type": "input_image", "image_url": "https://x/y.png"}
    for detail, sent in ((None, "auto"), ("low", "low"), ("original", "high")):
        content = _ask(input=[{"role": "user", "content": [{**part, "detail": detail}]}]).chat["messages"][0]["content"]
        assert content[0]["image_url"]["detail"] == sent


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "grammar"}, "tools[0].format.definition"),
        ({"type": "grammar", "syntax": "lark"}, "tools[0].format.definition"),
        ({"type": "grammar", "syntax": "bnf", "definition": "x"}, "tools[0].format.syntax"),
        ({"type": "regex"}, "tools[0].format.type"),
        ({}, "tools[0].format.type"),
        ("text", "tools[0].format"),
    ],
)
def test_a_custom_tools_format_is_not_dropped(form: Any, param: str) -> None:
    assert _error(tools=[{"type": "custom", "name": "c", "format": form}])["param"] == param


@pytest.mark.parametrize("form", [None, {"type": "text"}, {"type": "grammar", "definition": "start: A"}])
def test_a_custom_tools_format_that_is_right_is_taken(form: Any) -> None:
    assert _ask(tools=[{"type": "custom", "name": "c", "format": form}]).calls


def test_a_function_in_chats_form_is_answered_with_the_right_one() -> None:
    nested = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}
    found = _error(tools=[nested])
    assert found["param"] == "tools[0].name" and "under 'function'" in found["message"]
    assert "under" not in _error(tools=[{"type": "function"}])["message"]
    function = {"type": "function", "name": "f", "parameters": PARAMETERS}
    found = _error(tools=[function], tool_choice={"type": "function", "function": {"name": "f"}})
    assert found["param"] == "tool_choice.name" and "under 'function'" in found["message"]


def test_a_choice_of_a_custom_tool_means_no_function_of_that_name() -> None:
    tools = [{"type": "function", "name": "f", "parameters": PARAMETERS}]
    assert _error(tools=tools, tool_choice={"type": "custom", "name": "f"})["param"] == "tool_choice"
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "f"}]}
    assert _error(tools=tools, tool_choice=allowed)["param"] == "tool_choice.tools[0]"


@pytest.mark.parametrize(
    "metadata",
    [
        {str(number): "x" for number in range(17)},
        {"k" * 65: "v"},
        {"k": "v" * 513},
        {"k": 1},
        {"k": None},
        {"k": {}},
        [],
        "x",
    ],
)
def test_metadata_has_limits(metadata: Any) -> None:
    assert _error(metadata=metadata)["param"].startswith("metadata")


@pytest.mark.parametrize("metadata", [{str(number): "x" for number in range(16)}, {"k" * 64: "v" * 512}, {}, {"é": ""}])
def test_metadata_within_its_limits_comes_back(metadata: Any) -> None:
    outcome = _ask(metadata=metadata)
    assert outcome.json["metadata"] == metadata and "metadata" not in outcome.chat


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": "1"}, "Invalid type for 'temperature': expected a number, but got a string instead."),
        ({"stream": 1}, "Invalid type for 'stream': expected a boolean, but got an integer instead."),
        ({"include": "x"}, "Invalid type for 'include': expected an array, but got a string instead."),
        ({"text": []}, "Invalid type for 'text': expected an object, but got an array instead."),
        ({"metadata": {"a": 1}}, "Invalid type for 'metadata.a': expected a string, but got an integer instead."),
        (
            {"metadata": {"a": "x", "b": 1.5}},
            "Invalid type for 'metadata.b': expected a string, but got a number instead.",
        ),
        ({"metadata": {"a": None}}, "Invalid type for 'metadata.a': expected a string, but got null instead."),
        (
            {"reasoning": {"effort": 1}},
            "Invalid type for 'reasoning.effort': expected a string, but got an integer instead.",
        ),
        ({"input": [USER, 5]}, "Invalid type for 'input[1]': expected an object, but got an integer instead."),
        ({"tools": [{"name": "f"}]}, "Missing required parameter: 'tools[0].type'."),
        ({"text": {"format": {}}}, "Missing required parameter: 'text.format.type'."),
        ({"tool_choice": {"name": "f"}}, "Missing required parameter: 'tool_choice.type'."),
    ],
)
def test_a_wrong_type_is_said_in_the_words_of_json(fields: dict[str, Any], message: str) -> None:
    found = _error(**fields)
    assert found["message"] == message and found["param"] == message.split("'")[1]
    assert found["code"] == ("invalid_type" if message.startswith("Invalid") else "missing_required_parameter")


@pytest.mark.parametrize(
    ("kind", "body", "param", "code", "message"),
    [
        (_Made, b"[]", None, "invalid_type", "Invalid request body: expected an object, but got an array instead."),
        (CreateConversation, b'{"metadata":{"a":{}}}', "metadata.a", "invalid_type", "Invalid type for 'metadata.a': "),
        (_Made, b'{"name":5}', "name", "invalid_type", "Invalid type for 'name': expected a string, but got an"),
        # The key of a map within a list is not looked for.
        (_Rows, b'{"rows":[{"a":1}]}', "rows[0]", "invalid_type", "Invalid type for 'rows[0]': expected a string, but"),
        (_Made, b"{}", "name", "missing_required_parameter", "Missing required parameter: 'name'."),
    ],
)
def test_every_other_path_says_it_in_the_same_words(
    kind: Any, body: bytes, param: str | None, code: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as told:
        read_body(ApiRequest("POST", "/v1/prompts", (), (), body, "", "req_1"), kind)
    assert (told.value.param, told.value.code) == (param, code) and told.value.message.startswith(message)
