"""Items of this month's clients: messages between agents, changed configurations, outputs without a call's id, tools
that answer later, conversations that were compacted elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from tests.pitfalls.asking import FUNCTION, call_item, chain, output_item
from tests.support.exchanges import JSON, Outcome, run
from tests.support.judge import check_stream, parse_sse
from tests.support.model_turns import model_turn
from tests.support.strict_chat import check_chat_request

OK = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}'
USER = {"role": "user", "content": "hi"}
ASYNC = {**FUNCTION, "name": "slow", "async": True}


def _ask(*items: dict[str, Any], **fields: Any) -> Outcome:
    context = fields.pop("context", None)
    outcome = run({"model": "m", "input": list(items), **fields}, [OK], headers=JSON, context=context)
    if outcome.calls:
        check_chat_request(outcome.chat)
    return outcome


def _messages(*items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _ask(*items, **fields).chat["messages"]
    return found


def _agent(*content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "agent_message", "author": "/root", "recipient": "/root/child", "content": list(content)}


def test_a_message_of_another_agent_is_one_that_says_from_whom_it_is() -> None:
    messages = _messages(USER, _agent({"type": "input_text", "text": "Count the files."}))
    assert messages[1]["role"] == "user"
    text = "\n".join(part["text"] for part in messages[1]["content"])
    assert "from /root to /root/child" in text and "Count the files." in text


@pytest.mark.parametrize("closed", ["gAAAAABp-r_nDEFD_pLd6w==", "as1_QUJD", "Zm9v" * 20, "a" * 64, "", None, 5])
def test_what_only_its_maker_can_open_is_named(closed: Any) -> None:
    outcome = _ask(USER, _agent({"type": "encrypted_content", "encrypted_content": closed}))
    assert str(closed or "gAAAA") not in str(outcome.chat) and "(encrypted)" in str(outcome.chat)
    assert outcome.head is not None and ("antiphon-ignored", "content.encrypted_content") in outcome.head.headers


@pytest.mark.parametrize(
    "text",
    [
        "Count the files.",
        "Go",
        "continue",
        "a" * 63,
        "数一数文件" * 30,
        "gAAAA is how it begins",
        'Say "🎈"\nand stop.',
        "/a/path/" * 20,
    ],
)
def test_what_nobody_has_encrypted_is_read_where_it_stands(text: str) -> None:
    """Codex takes for encrypted whatever its model tells another agent: here the model's words are as it wrote them."""
    head = {"type": "input_text", "text": "Message Type: NEW_TASK\nPayload:\n"}
    outcome = _ask(USER, _agent(head, {"type": "encrypted_content", "encrypted_content": text}))
    told = [part["text"] for part in outcome.chat["messages"][1]["content"]]
    assert told == ["Message from /root to /root/child:", head["text"], text]
    assert outcome.head is not None and "antiphon-ignored" not in dict(outcome.head.headers)


def test_the_older_form_of_reasoning_goes_where_reasoning_goes() -> None:
    messages = _messages(USER, {"type": "agent_reasoning", "text": "hmm"}, {"role": "assistant", "content": "so"}, USER)
    assert messages[1]["reasoning_content"] == "hmm"


def test_the_last_change_of_the_configuration_wins() -> None:
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
    chat = _ask(
        USER,
        {"type": "configuration_update", "reasoning": {"effort": "high"}},
        USER,
        {"type": "configuration_update", "reasoning": {"effort": "low"}, "text": {"format": schema}},
        USER,
        reasoning={"effort": "medium"},
    ).chat
    assert chat["reasoning_effort"] == "low" and chat["response_format"]["json_schema"]["name"] == "a"
    assert [message["role"] for message in chat["messages"]] == ["user", "user", "user"]


def test_a_change_of_an_earlier_turn_holds_until_it_is_changed_again() -> None:
    before = chain(
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "configuration_update", "id": "cu_1", "reasoning": {"effort": "high"}},
    )
    again = {"previous_response_id": "resp_1", "context": before}
    assert _ask(USER, **again).chat["reasoning_effort"] == "high"
    back = {"type": "configuration_update", "reasoning": {"effort": None}}
    assert "reasoning_effort" not in _ask(back, USER, **again).chat


def test_a_format_that_is_taken_back_is_none() -> None:
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
    back = {"type": "configuration_update", "text": {"format": None}}
    assert "response_format" not in _ask(USER, back, text={"format": schema}).chat


def test_a_message_of_an_agent_may_be_a_text() -> None:
    (message,) = _messages({"type": "agent_message", "content": "Count."})
    assert message["content"][0]["text"] == "Message from another agent to this agent:"
    assert message["content"][1]["text"] == "Count."


def test_a_picture_that_comes_without_a_call_follows_in_a_message_of_its_own() -> None:
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    messages = _messages(USER, {"type": "function_call_output", "name": "eye", "output": [picture]})
    assert messages[1]["tool_calls"][0]["function"]["name"] == "eye"
    assert [message["role"] for message in messages[2:]] == ["tool", "user"]
    assert messages[3]["content"][1]["image_url"]["url"] == picture["image_url"]


@pytest.mark.parametrize("effort", ["low", "max", "xhigh", "minimal", None])
def test_a_change_of_the_configuration_is_echoed(effort: str | None) -> None:
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
    update = {"type": "configuration_update", "reasoning": {"effort": effort}, "text": {"format": schema}}
    outcome = _ask(USER, update, reasoning={"effort": "high", "summary": "auto"}, text={"verbosity": "low"})
    assert outcome.json["reasoning"] == {"effort": effort, "summary": "auto"}
    assert outcome.json["text"]["format"]["name"] == "a" and outcome.json["text"]["verbosity"] == "low"
    # Without one the request's own fields are.
    assert _ask(USER, reasoning={"effort": "high"}).json["reasoning"]["effort"] == "high"


def test_an_effort_that_nobody_knows_changes_nothing() -> None:
    known = {"type": "configuration_update", "reasoning": {"effort": "low"}}
    outcome = _ask(USER, known, {"type": "configuration_update", "reasoning": {"effort": "heroic"}})
    assert outcome.json["reasoning"]["effort"] == "low" == outcome.chat["reasoning_effort"]
    assert outcome.head is not None
    assert dict(outcome.head.headers)["antiphon-ignored"] == "input[2].reasoning.effort:heroic"


def test_a_change_of_the_format_alone_is_echoed() -> None:
    outcome = _ask(USER, {"type": "configuration_update", "text": {"format": {"type": "json_object"}}})
    assert outcome.json["text"]["format"] == {"type": "json_object"} and outcome.json["reasoning"]["effort"] is None


def test_a_message_of_another_agent_may_say_nothing() -> None:
    message = {"type": "agent_message"}
    assert "from another agent to this agent" in str(_messages(USER, message)[1])


def test_a_wrong_change_names_its_place() -> None:
    outcome = _ask(USER, {"type": "configuration_update", "text": {"format": {"type": "xml"}}})
    assert outcome.json["error"]["param"] == "input[1].text.format.type"
    outcome = _ask(USER, {"type": "configuration_update", "reasoning": 3})
    assert outcome.json["error"]["param"] == "input[1].reasoning"


def test_a_change_of_the_configuration_is_stored_with_its_turn() -> None:
    outcome = _ask(USER, {"type": "configuration_update", "reasoning": {"effort": "high"}})
    assert [item.type for item in outcome.records[0].input_items] == ["message", "configuration_update"]
    assert b'"effort"' in outcome.records[0].input_items[1].body


@pytest.mark.parametrize("named", [{"name": "f"}, {}], ids=["by its name", "the only one"])
def test_an_output_without_a_calls_id_answers_the_only_call_that_is_open(named: dict[str, Any]) -> None:
    output = {"type": "function_call_output", "output": "done", **named}
    messages = _messages(USER, call_item("call_1"), output, tools=[FUNCTION])
    assert messages[-1] == {"role": "tool", "tool_call_id": "call_1", "content": "done"}


@pytest.mark.parametrize(
    ("named", "name"),
    [({"name": "watch", "namespace": "door"}, "door__watch"), ({}, "tool")],
    ids=["named", "nameless"],
)
def test_an_output_that_answers_no_call_is_still_a_tools(named: dict[str, Any], name: str) -> None:
    """It is not what the user says."""
    messages = _messages(USER, {"type": "function_call_output", "output": "it opened", **named})
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    (call,) = messages[1]["tool_calls"]
    assert call["function"] == {"name": name, "arguments": "{}"}
    assert messages[2] == {"role": "tool", "tool_call_id": call["id"], "content": "it opened"}


def test_a_call_without_an_id_gets_one() -> None:
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    messages = _messages(USER, call, {"type": "function_call_output", "output": "done"}, tools=[FUNCTION])
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"]


def test_a_tool_may_answer_later() -> None:
    call = call_item("call_1", "slow")
    first = _messages(USER, call, {"role": "user", "content": "meanwhile?"}, tools=[ASYNC])
    assert [message["role"] for message in first] == ["user", "assistant", "tool", "user"]
    later = _messages(
        USER,
        call,
        {"role": "user", "content": "meanwhile?"},
        {"role": "assistant", "content": "Waiting."},
        output_item("call_1", "42"),
        tools=[ASYNC],
    )
    # What the model was told before stays as it was.
    assert later[: len(first)] == first
    call_again, output = later[-2:]
    assert call_again["tool_calls"][0]["function"] == later[1]["tool_calls"][0]["function"]
    assert output == {"role": "tool", "tool_call_id": call_again["tool_calls"][0]["id"], "content": "42"}


def test_an_output_that_comes_later_is_new_though_its_tool_is_gone() -> None:
    call = call_item("call_1", "slow")
    begun = [USER, call, {"role": "user", "content": "Meanwhile?"}, {"role": "assistant", "content": "Wait."}]
    before = _messages(*begun, USER, tools=[ASYNC])
    for tools in ([ASYNC], [FUNCTION], None):
        # Its place is the end of the conversation, whatever is declared by then.
        later = _messages(*begun, USER, output_item("call_1", "42"), tools=tools)
        assert later[: len(before)] == before
        assert [one["role"] for one in later[len(before) :]] == ["assistant", "tool"]
        assert later[-1]["content"] == "42"


def test_a_call_that_no_answer_has_passed_over_waits_for_its_output() -> None:
    call = call_item("call_1", "slow")
    # The model said both at once, or has not answered since.
    for between in ({"role": "assistant", "content": "I look."}, {"role": "user", "content": "Well?"}):
        messages = _messages(USER, call, between, output_item("call_1", "42"))
        assert {"role": "tool", "tool_call_id": "call_1", "content": "42"} in messages
    assert _ask(USER, call, USER).json["error"]["message"] == "No tool output found for function call call_1."
    # A tool that is declared, and answers at once, is waited for.
    told = {"role": "assistant", "content": "Wait."}
    declared = _messages(USER, call_item("call_1"), USER, told, output_item("call_1", "42"), tools=[FUNCTION])
    assert {"role": "tool", "tool_call_id": "call_1", "content": "42"} in declared


def test_a_tool_that_could_answer_later_may_answer_at_once() -> None:
    messages = _messages(USER, call_item("call_1", "slow"), output_item("call_1", "42"), tools=[ASYNC])
    assert messages[-1] == {"role": "tool", "tool_call_id": "call_1", "content": "42"}


def test_a_call_of_any_other_tool_waits_for_its_output() -> None:
    outcome = _ask(USER, call_item("call_1"), USER, tools=[FUNCTION])
    assert "No tool output found for function call call_1" in outcome.json["error"]["message"]


@pytest.mark.parametrize("kind", ["compaction", "context_compaction", "compaction_summary"])
def test_a_conversation_that_was_compacted_elsewhere_goes_on(kind: str) -> None:
    outcome = _ask({"type": kind, "encrypted_content": "gAAAAABsomething"}, USER)
    messages = outcome.chat["messages"]
    assert "compacted by another server" in messages[0]["content"] and messages[1]["content"] == "hi"
    assert outcome.head is not None and ("antiphon-ignored", f"input.{kind}") in outcome.head.headers


SEALED = {"type": "encrypted_content", "encrypted_content": "gAAAAABp-r_nDEFD_pLd6w=="}


def test_an_output_that_was_encrypted_elsewhere_is_a_note_and_named() -> None:
    outcome = _ask(USER, call_item("call_1"), {**output_item("call_1", ""), "output": [SEALED]}, USER, tools=[FUNCTION])
    assert outcome.chat["messages"][2]["content"] == (
        "(The output was encrypted by another server and cannot be read here.)"
    )
    assert outcome.head is not None and ("antiphon-ignored", "content.encrypted_content") in outcome.head.headers


def test_what_can_be_read_of_an_output_is_all_that_is_said() -> None:
    output = [SEALED, {"type": "input_text", "text": "seen"}]
    messages = _messages(USER, call_item("call_1"), {**output_item("call_1", ""), "output": output}, tools=[FUNCTION])
    assert messages[2]["content"] == "seen"


def test_in_strict_mode_an_output_that_was_encrypted_elsewhere_is_refused() -> None:
    items = [USER, call_item("call_1"), {**output_item("call_1", ""), "output": [SEALED]}]
    outcome = run({"model": "m", "input": items, "tools": [FUNCTION]}, [OK], headers=JSON, strict=True)
    assert outcome.json["error"]["param"] == "input[2].output[0].type"


# Functions whose arguments a client wants encrypted

WRITTEN = {"type": "string", "description": "What to do."}
SPAWN = {
    "type": "function",
    "name": "spawn_agent",
    "parameters": {
        "type": "object",
        "properties": {"task": True, "message": {**WRITTEN, "encrypted": True}},
        "required": ["task"],
    },
}
TEAM = {"type": "namespace", "name": "collaboration", "description": "", "tools": [SPAWN]}
PLAIN = {"type": "string", "encrypted": False}


def _called(name: str, tool: dict[str, Any], *, stream: bool) -> tuple[Outcome, dict[str, Any], list[dict[str, Any]]]:
    """A call of the tool: the outcome, the call's item, and the item as it stands in the events."""
    said = [model_turn("", (name, '{"message":"Count."}'), stream=stream)]
    outcome = run(
        {"model": "m", "input": "hi", "tools": [tool], "stream": stream}, said, headers=() if stream else JSON
    )
    if not stream:
        return outcome, outcome.json["output"][0], []
    events = parse_sse(outcome.body)
    items = [event["item"] for event in events if "item" in event]
    return outcome, check_stream(events)["output"][0], items


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("name", "tool"), [("collaboration__spawn_agent", TEAM), ("spawn_agent", SPAWN)], ids=["in a namespace", "alone"]
)
def test_calls_say_that_nothing_was_encrypted_where_that_was_asked_for(
    name: str, tool: dict[str, Any], stream: bool
) -> None:
    """Codex then reads what its agents tell each other as the text that it is."""
    outcome, call, items = _called(name, tool, stream=stream)
    assert call["encrypted_function_args"] == [] and call["arguments"] == '{"message":"Count."}'
    assert all(item["encrypted_function_args"] == [] for item in items)
    (declared,) = outcome.chat["tools"]
    assert declared["function"]["parameters"]["properties"] == {"task": True, "message": WRITTEN}
    assert declared["function"]["parameters"]["required"] == ["task"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": {"encrypted": {"type": "string"}}},
        {"type": "object", "properties": {"a": PLAIN}},
        {"type": "object", "properties": {"a": True, "b": {"encrypted": "True"}}},
        {"type": "object", "properties": "encrypted"},
        {"type": "object", "$ref": "#/$defs/a", "$defs": {"a": {"encrypted": True}}},
    ],
)
def test_other_schemas_are_sent_as_they_are(parameters: dict[str, Any]) -> None:
    outcome, call, _ = _called("f", {"type": "function", "name": "f", "parameters": parameters}, stream=True)
    assert outcome.chat["tools"][0]["function"]["parameters"] == parameters
    assert "encrypted_function_args" not in call


def test_a_call_that_says_so_comes_back() -> None:
    call = {**call_item("call_1", "spawn_agent"), "encrypted_function_args": []}
    outcome = _ask(USER, call, output_item("call_1", "{}"), tools=[SPAWN])
    assert outcome.chat["messages"][1]["tool_calls"][0]["function"]["name"] == "spawn_agent"
    assert outcome.head is not None and "antiphon-ignored" not in dict(outcome.head.headers)
