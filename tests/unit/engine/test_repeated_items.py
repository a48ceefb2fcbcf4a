"""Items that a conversation has already and that a request brings again, by reference or whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.engine.ports.actions import Chain, Context, StoredItem
from tests.support.exchanges import JSON, Outcome, run
from tests.support.model_turns import model_turn

ASKED = {"type": "message", "id": "msg_1", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
SAID = {"type": "message", "id": "msg_2", "role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "A greeting."}]}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}
SHELL = {"type": "local_shell_call", "id": "lsh_1", "call_id": "s", "action": {"type": "exec", "command": ["ls"]}}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "42"}
MORE = {"role": "user", "content": "and?"}
ANSWER = model_turn("So.", stream=False)


def _ask(way: str, history: list[dict[str, Any]], sent: list[dict[str, Any]], **options: Any) -> Outcome:
    stored = tuple(StoredItem(one["id"], one["type"], json.dumps(one).encode()) for one in history)
    items = {one.id: one for one in stored}
    if way == "chain":
        named, context = {"previous_response_id": "resp_1"}, Context(chain=Chain(stored), items=items)
    else:
        named, context = {"conversation": "conv_1"}, Context(conversation=stored, items=items)
    return run({"model": "m", "input": sent, **named}, [ANSWER], headers=JSON, context=context, **options)


def _ignored(outcome: Outcome) -> str:
    assert outcome.head is not None and outcome.head.status == 200, outcome.body
    return dict(outcome.head.headers).get("antiphon-ignored", "")


@pytest.mark.parametrize("way", ["chain", "conversation"])
@pytest.mark.parametrize(
    ("again", "ignored"),
    [
        ([SAID], "input.message:msg_2"),
        ([{"type": "item_reference", "id": "msg_2"}], "input.message:msg_2"),
        ([{"id": "msg_2"}], "input.message:msg_2"),
        ([THOUGHT, SAID], "input.reasoning:rs_1, input.message:msg_2"),
        ([{"type": "reasoning", "id": "rs_1", "summary": []}], "input.reasoning:rs_1"),
        ([{key: value for key, value in ASKED.items() if key != "type"}], "input.message:msg_1"),
    ],
)
def test_what_the_conversation_has_is_not_shown_twice(way: str, again: list[dict[str, Any]], ignored: str) -> None:
    history = [ASKED, THOUGHT, SAID]
    outcome = _ask(way, history, [*again, MORE])
    assert outcome.chat["messages"] == _ask(way, history, [MORE]).chat["messages"]
    assert _ignored(outcome).replace("%3A", ":") == ignored
    assert [item.type for item in outcome.records[0].input_items] == ["message"]
    refused = _ask(way, history, [*again, MORE], strict=True)
    assert refused.head is not None and refused.head.status == 400 and not refused.calls
    error = refused.json["error"]
    name = ignored.partition(",")[0].rpartition(":")[2]
    assert error["message"].startswith(f"Duplicate item found with id {name}.") and error["param"] == "input"


def test_a_call_that_comes_again_with_its_output_is_answered() -> None:
    outcome = _ask("chain", [ASKED, CALL], [CALL, OUTPUT])
    assert [message["role"] for message in outcome.chat["messages"]] == ["user", "assistant", "tool"]


def test_an_output_that_names_its_call_by_its_own_id_is_no_duplicate() -> None:
    output = {"type": "local_shell_call_output", "id": "lsh_1", "output": "a.txt"}
    outcome = _ask("chain", [ASKED, SHELL], [output])
    assert outcome.chat["messages"][-1]["content"] == "a.txt" and not _ignored(outcome)


def test_an_item_of_elsewhere_is_new() -> None:
    outcome = _ask("chain", [ASKED], [{**SAID, "id": "msg_9"}, MORE])
    assert [message["role"] for message in outcome.chat["messages"]] == ["user", "assistant", "user"]
    assert not _ignored(outcome)
