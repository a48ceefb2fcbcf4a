"""Part A, requests to chat requests: formats, messages, reasoning, limits (the tools are in `test_a_tools.py`)."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from antiphon.sealing import Sealer
from tests.pitfalls.asking import FUNCTION, call_item, chain, chat, error, output_item
from tests.support.exchanges import JSON, run

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "$defs": {"b": {"type": "null"}}}
FORMAT = {"type": "json_schema", "name": "answer", "schema": SCHEMA}
USER = {"role": "user", "content": "hi"}
PICTURE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}


def _roles(made: dict[str, Any]) -> list[str]:
    return [message["role"] for message in made["messages"]]


@pytest.mark.parametrize("stream", [False, True])
def test_pitfall_1_a_format_reaches_the_upstream(stream: bool) -> None:
    assert chat(text={"format": FORMAT}, stream=stream)["response_format"]["type"] == "json_schema"
    assert chat(text={"format": {"type": "json_object"}})["response_format"] == {"type": "json_object"}
    assert "response_format" not in chat(text={"format": {"type": "text"}})


@pytest.mark.parametrize("strict", [True, False, None])
def test_pitfall_2_a_schema_is_nested_and_its_strict_is_the_clients(strict: bool | None) -> None:
    given = {} if strict is None else {"strict": strict}
    made = chat(text={"format": {**FORMAT, **given, "description": "d"}})
    assert made["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "description": "d", **given},
    }


@pytest.mark.parametrize("value", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}])
def test_pitfall_4_chats_response_format_is_refused_with_the_right_name(value: Any) -> None:
    found = error(response_format=value)
    assert found["param"] == "response_format" and "'text.format'" in found["message"]


def test_pitfall_5_a_server_without_schemas_gets_the_schema_as_an_instruction() -> None:
    made = chat("deepseek", text={"format": FORMAT}, instructions="Be kind.")
    assert made["response_format"] == {"type": "json_object"}
    assert made["messages"][0]["role"] == "system" and '"$defs"' in made["messages"][0]["content"]
    assert made["messages"][0]["content"].startswith("Be kind.")


def test_pitfall_10_a_tool_output_may_be_a_list_of_parts() -> None:
    parts = [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]
    made = chat(input=[USER, call_item(), output_item(output=parts)])
    assert made["messages"][-1] == {"role": "tool", "tool_call_id": "call_1", "content": "one\ntwo"}


@pytest.mark.parametrize("kind", ["input_text", "output_text", "text"])
def test_pitfall_10_a_tool_output_may_be_one_part_without_a_list(kind: str) -> None:
    made = chat(input=[USER, call_item(), output_item(output={"type": kind, "text": "one"})])
    assert made["messages"][-1]["content"] == "one"


def test_pitfall_11_a_tool_output_may_hold_images_among_its_text() -> None:
    parts = [{"type": "input_text", "text": "see"}, PICTURE]
    made = chat(input=[USER, call_item(), output_item(output=parts)])
    assert made["messages"][2]["content"] == "see"
    assert made["messages"][3]["content"][1]["image_url"]["url"] == PICTURE["image_url"]
    # Where the model sees no pictures, that is said; nothing is dropped.
    body = {"model": "m", "input": [USER, call_item(), output_item(output=parts)]}
    outcome = run(body, profile="deepseek")
    assert not outcome.calls and outcome.json["error"]["param"] == "input[2].output[1]"


def test_pitfall_12_images_of_tool_outputs_follow_after_all_tool_messages() -> None:
    items = [USER, call_item("a"), call_item("b"), output_item("a", [PICTURE]), output_item("b", "text")]
    made = chat(input=items)
    assert _roles(made) == ["user", "assistant", "tool", "tool", "user"]
    assert made["messages"][2]["content"] and made["messages"][4]["content"][1]["type"] == "image_url"


@pytest.mark.parametrize("text", ["hi there", "x", "[1, 2]", '{"role": "user"}'])
def test_pitfall_13_a_bare_string_is_one_user_message(text: str) -> None:
    assert chat(input=text)["messages"] == [{"role": "user", "content": text}]


def test_pitfall_14_a_string_is_not_taken_apart() -> None:
    made = chat(input="abc", instructions="xyz")
    assert [message["content"] for message in made["messages"]] == ["xyz", "abc"]
    content = chat(input=[{"role": "user", "content": "abc"}])["messages"][0]["content"]
    assert content == "abc"


def test_pitfall_15_replayed_items_may_carry_status_and_whatever_else_was_in_the_output() -> None:
    part = {"type": "output_text", "text": "hm", "annotations": [], "logprobs": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    made = chat(
        input=[
            {**USER, "type": "message", "id": "msg_0", "status": "completed"},
            {**message, "phase": "commentary", "internal_chat_message_metadata_passthrough": {"a": 1}},
            call_item(id="fc_1", status="completed", namespace=None, caller={"type": "direct"}),
            output_item(id="fco_1", status="completed"),
        ]
    )
    assert _roles(made) == ["user", "assistant", "tool"]
    assert set(made["messages"][1]) == {"role", "content", "tool_calls"}


@pytest.mark.parametrize(
    "action", [{"type": "other"}, {"type": "search", "query": "q"}, {"type": "open_page", "url": "u"}, None, {}]
)
def test_pitfall_16_a_web_search_of_any_action_is_shown(action: Any) -> None:
    call = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": action}
    made = chat(input=[USER, call, {"role": "assistant", "content": "found"}, USER])
    assert _roles(made) == ["user", "assistant", "tool", "assistant", "user"]
    assert made["messages"][1]["tool_calls"][0]["function"]["name"] == "web_search"


@pytest.mark.parametrize(
    ("item", "output", "seen"),
    [
        ({"type": "web_search_call", "status": "completed"}, None, ("web_search", "{}", "Done; what was found is")),
        ({"type": "reasoning", "summary": [], "content": None, "encrypted_content": None}, None, None),
        (
            {"type": "local_shell_call", "id": "lsh_1", "call_id": None, "action": {"type": "exec", "command": ["ls"]}},
            {"type": "local_shell_call_output", "id": "lsh_1", "output": "x"},
            ("local_shell", '{"command":["ls"]}', "x"),
        ),
        (
            {
                "type": "tool_search_call",
                "call_id": None,
                "execution": "client",
                "arguments": {"query": "q"},
                "id": "t",
            },
            {"type": "tool_search_output", "call_id": None, "tools": []},
            ("tool_search", '{"query": "q"}', "No tools were found."),
        ),
    ],
    ids=lambda value: value.get("type") if isinstance(value, dict) else "",
)
def test_pitfall_17_items_without_ids_or_names_are_read(
    item: dict[str, Any], output: dict[str, Any] | None, seen: tuple[str, str, str] | None
) -> None:
    first, *between, last = chat(input=[USER, item, *([output] if output else []), USER])["messages"]
    assert (first["content"], last["content"]) == (USER["content"], USER["content"])
    if seen is None:
        assert between == []
        return
    name, arguments, text = seen
    called, told = between
    (made,) = called["tool_calls"]
    assert made["function"] == {"name": name, "arguments": arguments}
    assert told["role"] == "tool" and told["tool_call_id"] == made["id"] and told["content"].startswith(text)


def test_pitfall_17_what_is_needed_and_missing_is_named() -> None:
    found = error(input=[{"type": "function_call", "call_id": "c", "arguments": "{}"}])
    assert found["param"] == "input[0].name"
    found = error(input=[{"type": "a_new_item", "x": 1}])
    assert found["param"] == "input" and "input.a_new_item" in found["message"]


def test_pitfall_18_a_developer_message_is_a_system_message_or_stays_one_and_never_a_users() -> None:
    items = [{"role": "developer", "content": "rule"}, USER]
    assert chat(input=items)["messages"][0] == {"role": "system", "content": "rule"}
    later = [USER, {"role": "assistant", "content": "x"}, {"role": "developer", "content": "rule"}, USER]
    assert chat("openai", input=later)["messages"][2] == {"role": "developer", "content": "rule"}


def test_pitfall_19_system_messages_are_one_at_the_beginning() -> None:
    items = [
        {"role": "system", "content": "one"},
        USER,
        {"role": "developer", "content": [{"type": "input_text", "text": "two"}]},
        {"role": "system", "content": "three"},
    ]
    made = chat(input=items, instructions="zero")
    assert made["messages"] == [{"role": "system", "content": "zero\n\none\n\ntwo\n\nthree"}, USER]


def test_pitfall_20_what_a_template_refuses_keeps_its_status() -> None:
    body = {"error": {"message": "System message must be at the beginning.", "type": "BadRequestError", "code": 400}}
    outcome = run({"model": "m", "input": "hi"}, [str(body).replace("'", '"').encode()], status=400, headers=JSON)
    assert outcome.head is not None and outcome.head.status == 400
    assert "beginning" in outcome.json["error"]["message"]


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("typed", [False, True])
def test_pitfall_21_system_messages_may_stand_in_the_input(role: str, typed: bool) -> None:
    more = {"type": "message", "id": "msg_1"} if typed else {}
    assert chat(input=[{"role": role, "content": "rule", **more}, USER])["messages"][0]["content"] == "rule"


def test_pitfall_22_instructions_of_an_earlier_turn_do_not_come_back() -> None:
    before = chain(USER, {"role": "assistant", "content": "hello"})
    made = chat(context=before, previous_response_id="resp_before", instructions="now", input="more")
    assert _roles(made) == ["system", "user", "assistant", "user"] and made["messages"][0]["content"] == "now"
    made = chat(context=before, previous_response_id="resp_before", input="more")
    assert _roles(made) == ["user", "assistant", "user"]


@pytest.mark.parametrize("content", [None, [], [{"type": "reasoning_text", "text": "thought"}]])
def test_pitfall_37_reasoning_may_have_a_summary_only(content: Any) -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "short"}]}
    made = chat(input=[USER, {**item, "content": content}, call_item(), output_item()])
    assert made["messages"][1]["reasoning_content"] == ("thought" if content else "short")
    made = chat(input=[USER, item, call_item(), output_item()])
    assert made["messages"][1]["reasoning_content"] == "short"


@pytest.mark.parametrize(("profile", "key"), [("deepseek", "reasoning_content"), ("ollama", "reasoning")])
def test_pitfall_38_reasoning_goes_back_with_the_turn_that_called(profile: str, key: str) -> None:
    item = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "thought"}]}
    made = chat(profile, input=[USER, item, call_item(), output_item()], tools=[FUNCTION])
    assert made["messages"][1][key] == "thought" and made["messages"][1]["tool_calls"]


def test_pitfall_39_reasoning_and_several_calls_are_one_assistant_turn() -> None:
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "thought"}]}
    items = [USER, item, call_item("a"), call_item("b"), call_item("c")]
    made = chat(input=[*items, output_item("c"), output_item("a"), output_item("b")])
    assert _roles(made) == ["user", "assistant", "tool", "tool", "tool"]
    assert [one["id"] for one in made["messages"][1]["tool_calls"]] == ["a", "b", "c"]
    assert made["messages"][1]["reasoning_content"] == "thought"
    assert [message["tool_call_id"] for message in made["messages"][2:]] == ["a", "b", "c"]


def test_pitfall_40_a_summary_is_neither_text_nor_a_message_of_its_own() -> None:
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "thought"}]}
    made = chat(input=[USER, item, {"role": "assistant", "content": "answer"}, USER])
    assert _roles(made) == ["user", "assistant", "user"] and made["messages"][1]["content"] == "answer"
    # Reasoning that led to nothing is no empty message either.
    assert _roles(chat(input=[USER, item, USER])) == ["user", "user"]


def test_pitfall_41_reasoning_comes_back_with_id_and_encrypted_content() -> None:
    sealer = Sealer([b"secret"])
    text = sealer.seal("owner", "reasoning", b'{"text":"thought","details":[]}')
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": text}
    body = {"model": "m", "store": False, "input": [USER, item, call_item(), output_item()]}
    outcome = run(body, [b"{}"], headers=JSON, sealer=sealer)
    assert outcome.chat["messages"][1]["reasoning_content"] == "thought"


def test_pitfall_41_a_reference_that_resolves_to_nothing_is_named() -> None:
    outcome = run({"model": "m", "input": [{"type": "item_reference", "id": "msg_nobody"}, USER]})
    found = outcome.json["error"]
    assert found["param"] == "input[0].id" and "msg_nobody" in found["message"]


@pytest.mark.parametrize(
    ("profile", "field", "other"),
    [("openai", "max_completion_tokens", "max_tokens"), ("generic", "max_tokens", "max_completion_tokens")],
)
def test_pitfall_42_the_token_limit_has_the_name_the_server_knows(profile: str, field: str, other: str) -> None:
    made = chat(profile, max_output_tokens=100)
    assert made[field] == 100 and other not in made
    assert field not in chat(profile)


@pytest.mark.parametrize(
    ("profile", "effort", "sent"),
    [
        *(("generic", effort, effort) for effort in ("none", "minimal", "low", "medium", "high", "xhigh")),
        ("ollama", "minimal", "low"),
        ("ollama", "xhigh", "high"),
        ("mistral", "low", "high"),
        ("deepseek", "none", "minimal"),
    ],
)
def test_pitfall_43_an_effort_is_sent_as_one_the_server_knows(profile: str, effort: str, sent: str) -> None:
    assert chat(profile, reasoning={"effort": effort})["reasoning_effort"] == sent


def test_pitfall_43_an_effort_that_cannot_be_sent_is_named() -> None:
    outcome = run({"model": "m", "input": "hi", "reasoning": {"effort": "low"}}, [b"{}"], headers=JSON, profile="groq")
    assert "reasoning_effort" not in outcome.chat
    outcome = run(
        {"model": "m", "input": "hi", "reasoning": {"effort": "low"}},
        [b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}'],
        headers=JSON,
        profile="groq",
    )
    assert outcome.head is not None and ("antiphon-ignored", "reasoning.effort") in outcome.head.headers


@pytest.mark.parametrize(
    ("name", "header"),
    [("a.txt", "data:text/plain;base64,"), ("a", "data:text/csv;base64,"), ("a.py", ""), ("A.MD", "")],
)
def test_pitfall_44_the_text_of_a_file_is_in_the_prompt(name: str, header: str) -> None:
    data = base64.b64encode("Prägung".encode()).decode()
    part = {"type": "input_file", "filename": name, "file_data": header + data}
    content = [{"type": "input_text", "text": "Read:"}, part]
    assert "Prägung" in chat(input=[{"role": "user", "content": content}])["messages"][0]["content"][1]["text"]


def test_pitfall_44_a_file_that_the_server_cannot_read_is_named() -> None:
    part = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}
    body = {"model": "m", "input": [{"role": "user", "content": [part]}]}
    outcome = run(body, profile="vllm")
    assert not outcome.calls and outcome.json["error"]["param"] == "input[0].content[0]"
    part = {"type": "input_file", "file_id": "file-1"}
    assert error(input=[{"role": "user", "content": [part]}])["param"] == "input[0].content[0].file_id"


def test_pitfall_45_the_same_message_twice_stays_twice() -> None:
    assert chat(input=[USER, USER])["messages"] == [USER, USER]
    before = chain(USER, {"role": "assistant", "content": "hello"}, USER)
    made = chat(context=before, previous_response_id="resp_before", input=[USER])
    assert _roles(made) == ["user", "assistant", "user", "user"]


@pytest.mark.parametrize("value", ["auto", "disabled", None])
def test_pitfall_46_truncation_is_never_an_error(value: str | None) -> None:
    assert "truncation" not in chat(truncation=value)
