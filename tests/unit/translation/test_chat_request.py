"""The chat request: order of messages, tools, and what must never reach a strict server."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from antiphon.errors import InvalidRequest
from antiphon.translation.chat.body import translate_request
from antiphon.translation.profiles import PROFILES, choose_profile
from antiphon.translation.request.body import read_request
from antiphon.translation.values import ItemSources
from tests.support.exchanges import run

_NONE = ItemSources(unseal=lambda text, param: b"")


def _chat(profile: str = "generic", **fields: Any) -> dict[str, Any]:
    body = json.dumps({"model": "m", "input": "hi", **fields}).encode()
    request = read_request(body, max_items=100, max_tools=100)
    items = [(f"input[{number}]", item) for number, item in enumerate(request.input)]
    found: dict[str, Any] = json.loads(translate_request(request, items, PROFILES[profile], sources=_NONE).body)
    return found


def _messages(items: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _chat(input=items, **fields)["messages"]
    return found


def _call(call_id: str, name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def _output(call_id: str, output: Any = "ok") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


_USER = {"role": "user", "content": "u"}


def test_a_string_is_one_user_message() -> None:
    assert _chat() == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_pitfall_19_there_is_one_system_message_and_it_is_the_first() -> None:
    items: list[dict[str, Any]] = [
        {"role": "system", "content": "b"},
        {"role": "developer", "content": [{"type": "input_text", "text": "c"}]},
    ]
    assert _messages([*items, _USER, {"role": "developer", "content": "late"}], instructions="a") == [
        {"role": "system", "content": "a\n\nb\n\nc\n\nlate"},
        {"role": "user", "content": "u"},
    ]


def test_consecutive_and_identical_messages_all_stay() -> None:
    assert _messages([_USER, _USER, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]) == [
        {"role": "user", "content": "u"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


def test_all_calls_of_a_turn_are_one_message_with_its_text() -> None:
    text = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "let me see"}]}
    messages = _messages(
        [_USER, text, _call("a"), _call("b", arguments='{"x":1}'), _output("b", "B"), _output("a", "A")]
    )
    assert messages[1]["content"] == "let me see"
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["a", "b"]
    assert messages[1]["tool_calls"][1]["function"] == {"name": "f", "arguments": '{"x":1}'}
    assert messages[2:] == [
        {"role": "tool", "content": "A", "tool_call_id": "a"},
        {"role": "tool", "content": "B", "tool_call_id": "b"},
    ]


def test_text_behind_a_call_is_still_its_turn() -> None:
    """As Codex keeps what a model said after its call: before the output, and before the thoughts of the next step."""
    said = [{"type": "message", "role": "assistant", "content": text} for text in ("now a", "now b")]
    steps = [_thought("one"), _call("a"), said[0], _output("a"), _thought("two"), _call("b"), said[1], _output("b")]
    messages = _messages([_USER, *steps])
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "tool"]
    turns = [messages[1], messages[3]]
    assert [turn["content"] for turn in turns] == ["now a", "now b"]
    assert [turn["reasoning_content"] for turn in turns] == ["one", "two"]
    assert [turn["tool_calls"][0]["id"] for turn in turns] == ["a", "b"]


def test_text_behind_an_answered_call_is_the_next_turn() -> None:
    said = {"type": "message", "role": "assistant", "content": "done"}
    messages = _messages([_USER, _call("a"), _output("a"), said])
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]


def test_outputs_follow_their_call_wherever_they_stand() -> None:
    messages = _messages(
        [_USER, _call("a"), _call("b"), _output("a"), {"role": "user", "content": "wait"}, _output("b")]
    )
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "user"]


def test_a_call_after_an_output_is_the_next_turn() -> None:
    messages = _messages([_USER, _call("a"), _output("a"), _call("b"), _output("b")])
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "tool"]


def test_call_ids_may_repeat_in_later_turns() -> None:
    messages = _messages(
        [_USER, _call("call_1"), _output("call_1", "x"), _USER, _call("call_1"), _output("call_1", "y")]
    )
    assert [message["content"] for message in messages if message["role"] == "tool"] == ["x", "y"]


def test_two_outputs_of_one_call_are_one_message() -> None:
    messages = _messages([_USER, _call("a"), _output("a", "x"), _output("a", "y")])
    assert messages[-1] == {"role": "tool", "tool_call_id": "a", "content": "x\ny"}


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([_USER, _output("a")], "No tool call found"),
        ([_USER, _output("a"), _call("a")], "No tool call found"),
        ([_USER, _call("a")], "No tool output found for function call a"),
        ([_USER, _call("a"), _call("a"), _output("a")], "share the call_id"),
        ([{"type": "function_call", "name": "f", "arguments": "{}"}], "No tool output found for function call call_0"),
        ([{"type": "function_call", "call_id": "a", "arguments": "{}"}], r"input\[0\].name"),
        ([{"type": "function_call", "call_id": "a", "name": "f", "arguments": 5}], r"input\[0\].arguments"),
        ([{"type": "unheard_of"}], "unheard_of"),
        ([{"content": "x"}], r"input\[0\].type"),
        ([{"role": "tool", "content": "x"}], r"input\[0\].role"),
        ([{"role": "user"}], r"input\[0\].content"),
        ([{"role": "user", "content": 3}], r"input\[0\].content"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], r"input\[0\].content\[0\]"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "does not accept audio"),
        ([{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}], r"content\[0\].file_id"),
        ([{"role": "system", "content": [{"type": "input_image", "image_url": "x"}]}], "only text"),
    ],
)
def test_what_cannot_be_said_is_refused(items: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        _messages(items)


def test_parts() -> None:
    parts = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "high"},
        {"type": "input_image", "image_url": "https://x/y.png"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"},
    ]
    (message,) = _messages([{"role": "user", "content": parts}])
    assert message["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "auto"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}},
    ]


def test_images_in_an_output_follow_all_tool_messages() -> None:
    picture = [{"type": "input_text", "text": "seen"}, {"type": "input_image", "image_url": "data:x"}]
    messages = _messages([_USER, _call("a"), _call("b"), _output("a", picture), _output("b")])
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "user"]
    assert messages[2]["content"] == "seen" and messages[4]["content"][-1]["type"] == "image_url"
    # The tool role takes no picture: the message says that it is not the user who shows it.
    assert messages[4]["content"][0]["text"].startswith("From the outputs of the tools above")


def test_an_output_that_is_a_picture_alone_says_where_it_is() -> None:
    messages = _messages([_USER, _call("a"), _output("a", [{"type": "input_image", "image_url": "data:x"}])])
    assert messages[2]["content"] == "(The output is in the next message.)"


def _user_parts(*parts: dict[str, Any], profile: str = "generic") -> Any:
    return _chat(profile, input=[{"role": "user", "content": list(parts)}])["messages"][0]["content"]


def test_an_image_in_the_form_of_chat_is_understood() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}
    assert _user_parts(part) == [part]
    with pytest.raises(InvalidRequest, match="image_url"):
        _user_parts({"type": "input_image", "image_url": ""})


@pytest.mark.parametrize(
    ("name", "data", "url"),
    [
        ("a.pdf", "JVBERi0=", "data:application/pdf;base64,JVBERi0="),
        ("a.PDF", "data:application/pdf;base64,JVBERi0=", "data:application/pdf;base64,JVBERi0="),
        ("a.bin", "AA==", "data:application/octet-stream;base64,AA=="),
    ],
)
def test_a_file_is_a_data_url_however_it_came(name: str, data: str, url: str) -> None:
    (part,) = _user_parts({"type": "input_file", "filename": name, "file_data": data})
    assert part == {"type": "file", "file": {"filename": name, "file_data": url}}


def test_a_file_that_is_a_picture_is_an_image() -> None:
    (part,) = _user_parts({"type": "input_file", "filename": "a.png", "file_data": "AA=="})
    assert part["image_url"] == {"url": "data:image/png;base64,AA==", "detail": "auto"}


def test_pitfall_44_a_text_file_is_its_text_also_with_slashes_escaped() -> None:
    # "<???>" in base64 has a slash, and some JSON writers escape slashes.
    data = base64.b64encode(b"<???>").decode()
    assert "/" in data
    for url in (data, f"data:text/plain;base64,{data}"):
        part = {"type": "input_file", "filename": "a.txt", "file_data": url}
        body = json.dumps({"model": "m", "input": [{"role": "user", "content": [part]}]}).replace("/", r"\/").encode()
        request = read_request(body, max_items=9, max_tools=9)
        items = [("input[0]", request.input[0])]
        chat = json.loads(translate_request(request, items, PROFILES["generic"], sources=_NONE).body)
        assert chat["messages"][0]["content"][0]["text"] == "File a.txt:\n<???>"


def test_several_texts_are_one_string_where_only_text_is_taken() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert _user_parts(*parts, profile="deepseek") == "a\nb"
    assert len(_user_parts(*parts)) == 2


def test_an_object_as_output_is_its_json() -> None:
    messages = _messages([_USER, _call("a"), _output("a", {"found": "x"})])
    assert json.loads(messages[-1]["content"]) == {"found": "x"}


def test_an_object_that_is_one_part_is_its_text() -> None:
    for part in ({"text": "x"}, {"type": "input_text", "text": "x"}):
        assert _messages([_USER, _call("a"), _output("a", part)])[-1]["content"] == "x"


def test_reasoning_goes_with_its_turn() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "content": None}
    messages = _messages([_USER, thought, _call("a"), _output("a"), _USER])
    assert messages[1]["reasoning_content"] == "hm" and messages[1]["tool_calls"]
    assert [message["role"] for message in _messages([_USER, thought, _USER])] == ["user", "user"]


def _thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}


def test_pitfall_39_reasoning_before_each_of_several_calls_is_one_turn() -> None:
    messages = _messages(
        [_USER, _thought("one"), _call("a"), _thought("two"), _call("b"), _output("a"), _output("b"), _USER]
    )
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "user"]
    assert messages[1]["reasoning_content"] == "one\n\ntwo"
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["a", "b"]


def test_pitfall_40_reasoning_between_text_and_call_makes_no_second_message() -> None:
    said = {"type": "message", "role": "assistant", "content": "let me see"}
    messages = _messages([_USER, _thought("one"), said, _thought("two"), _call("a"), _output("a")])
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["content"] == "let me see" and messages[1]["reasoning_content"] == "one\n\ntwo"


def test_reasoning_goes_with_the_message_after_it_not_with_the_one_before() -> None:
    said = [{"type": "message", "role": "assistant", "content": text} for text in ("a", "b")]
    messages = _messages([_USER, said[0], _thought("two"), said[1], _USER])
    assert [message.get("reasoning_content") for message in messages] == [None, None, "two", None]


def _said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_a_thought_sent_back_as_text_is_reasoning_again() -> None:
    """As pydantic-ai does for models it does not know."""
    messages = _messages([_USER, _said("<think>\nI add\ntwo.\n</think>"), _call("a"), _output("a"), _USER])
    assert messages[1]["reasoning_content"] == "I add\ntwo." and messages[1]["content"] is None
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user"]


@pytest.mark.parametrize("text", ["<think>a</think> b", "<think>a</think><think>b</think>", "a <think>b</think>"])
def test_a_thought_within_other_text_stays_text(text: str) -> None:
    assert _messages([_USER, _said(text)])[1] == {"role": "assistant", "content": text}


def test_a_thought_as_text_stays_where_reasoning_has_no_place() -> None:
    said = _said("<think>a</think>")
    assert _chat("openai", input=[_USER, said])["messages"][1]["content"] == "<think>a</think>"


def test_extra_keys_of_echoed_items_are_tolerated() -> None:
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "user", "content": "u", "id": "msg_1", "status": "completed"},
        {
            "type": "message",
            "role": "assistant",
            "phase": "commentary",
            "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}],
            "internal_chat_message_metadata_passthrough": {"x": 1},
        },
        {**_call("c"), "id": "fc_1", "status": "completed", "namespace": None},
        {**_output("c"), "id": "fco_1", "status": "completed"},
    ]
    assert [message["role"] for message in _messages(items)] == ["user", "assistant", "tool"]


def test_tools_are_nested_and_their_choice_too() -> None:
    tools = [
        {
            "type": "function",
            "name": "f",
            "description": "d",
            "parameters": {"type": "object", "$defs": {}, "properties": {}},
            "strict": True,
        },
        {"type": "function", "name": "g", "parameters": None},
    ]
    chat = _chat(tools=tools, tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False)
    assert chat["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "d",
                "parameters": {"type": "object", "$defs": {}, "properties": {}},
                "strict": True,
            },
        },
        {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}},
    ]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert chat["parallel_tool_calls"] is False
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    chat = _chat(tools=tools, tool_choice=allowed)
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["g"] and chat["tool_choice"] == "required"


@pytest.mark.parametrize("fields", [{"tools": []}, {"tool_choice": "auto"}, {"parallel_tool_calls": True, "tools": []}])
def test_nothing_about_tools_without_tools(fields: dict[str, Any]) -> None:
    assert set(_chat(**fields)) == {"model", "messages"}


def test_the_rest_of_the_fields() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    chat = _chat(
        stream=True,
        temperature=0.2,
        top_p=0.9,
        max_output_tokens=99,
        presence_penalty=1,
        frequency_penalty=-1,
        reasoning={"effort": "low"},
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}, "verbosity": "low"},
        metadata={"k": "v"},
        store=False,
    )
    del chat["messages"]
    assert chat == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
        "temperature": 0.2,
        "top_p": 0.9,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "max_tokens": 99,
        "reasoning_effort": "low",
    }
    assert _chat("openai", max_output_tokens=99)["max_completion_tokens"] == 99
    assert _chat("openai", input=[_USER, {"role": "developer", "content": "d"}])["messages"][1]["role"] == "developer"


def test_profiles_are_chosen_by_host() -> None:
    assert choose_profile("auto", "api.openai.com").name == "openai"
    assert choose_profile("auto", "x.openai.azure.com").name == "azure"
    assert choose_profile("auto", "localhost").name == "generic"
    with pytest.raises(KeyError):
        choose_profile("nobody", "localhost")


_PICTURE_URL = "data:image/png;base64,AAAA"
_TWO_SOURCES: list[tuple[dict[str, Any], str]] = [
    ({"type": "input_file", "file_id": "file-1", "file_url": "https://x.example/a"}, "file_id"),
    ({"type": "input_file", "file_id": "file-1", "file_data": "data:text/plain;base64,YQ=="}, "file_id"),
    ({"type": "input_file", "file_url": "https://x.example/a", "file_data": "YQ=="}, "file_url"),
    ({"type": "input_image", "file_id": "file-1", "image_url": _PICTURE_URL}, "file_id"),
    ({"type": "input_image", "file_id": "file-1", "image_url": {"url": _PICTURE_URL}}, "file_id"),
]


@pytest.mark.parametrize("place", ["message", "output"])
@pytest.mark.parametrize(("part", "param"), _TWO_SOURCES)
def test_a_part_with_two_sources_is_refused(part: dict[str, Any], param: str, place: str) -> None:
    items = [{"role": "user", "content": [part]}] if place == "message" else [_USER, _call("a"), _output("a", [part])]
    outcome = run({"model": "m", "input": items})
    assert outcome.head is not None and outcome.head.status == 400 and not outcome.calls
    error = outcome.json["error"]
    where = "input[0].content[0]" if place == "message" else "input[2].output[0]"
    assert (error["param"], error["code"]) == (f"{where}.{param}", "mutually_exclusive_parameters")


def test_a_source_that_is_null_or_empty_is_none() -> None:
    part = {"type": "input_image", "image_url": _PICTURE_URL, "file_id": None}
    text = {"type": "input_file", "file_data": "data:text/plain;base64,YQ==", "file_url": None, "file_id": None}
    assert len(_user_parts(part, text)) == 2
