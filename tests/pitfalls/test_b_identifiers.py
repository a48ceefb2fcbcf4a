"""Part B, identifiers: ours, the upstream's, the clients', and none mistaken for another."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from antiphon.ids import new_id
from tests.pitfalls.asking import FUNCTION, call, call_item, chain, chat, chunk, events, final, output_item, streamed
from tests.support.exchanges import JSON, run

USER = {"role": "user", "content": "hi"}
LONG = "fc_" + "x" * 443
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
KINDS = {"message": "msg_", "function_call": "fc_", "reasoning": "rs_", "custom_tool_call": "ctc_"}
CUSTOM = {"type": "custom", "name": "patch"}


def _all_kinds() -> list[dict[str, Any]]:
    """The events of an answer with every kind of item."""
    return events(
        streamed(
            chunk(reasoning_content="hm"),
            chunk(content="text"),
            call('{"x":1}', "f", id="call_a", index=0),
            call('{"input":"p"}', "patch", id="call_b", index=1),
            finish="tool_calls",
            tools=[FUNCTION, CUSTOM],
        )
    )


@pytest.mark.parametrize("prefix", ["resp", "msg", "fc", "rs", "ctc", "call"])
def test_pitfall_47_our_ids_are_short_and_plain(prefix: str) -> None:
    made = new_id(prefix)
    assert made.startswith(f"{prefix}_") and _ID.fullmatch(made) and len(made) <= 64
    assert new_id(prefix) != made


@pytest.mark.parametrize("call_id", [LONG, "c" * 41, "c" * 65])
def test_pitfall_47_long_ids_are_taken_from_clients_and_short_for_the_upstream(call_id: str) -> None:
    made = chat(input=[USER, call_item(call_id, id=LONG), output_item(call_id, id=LONG)])
    (sent,) = made["messages"][1]["tool_calls"]
    assert len(sent["id"]) <= 40 and made["messages"][2]["tool_call_id"] == sent["id"]


def test_pitfall_47_long_ids_of_an_upstream_are_short_for_clients() -> None:
    (item,) = final(streamed(call('{"x":1}', "f", id=LONG, index=0), finish="tool_calls"))["output"]
    assert len(item["call_id"]) <= 64 and len(item["id"]) <= 64


def test_pitfall_48_every_item_has_the_prefix_of_its_kind() -> None:
    output = _all_kinds()[-1]["response"]["output"]
    assert {item["type"] for item in output} == set(KINDS)
    for item in output:
        assert item["id"].startswith(KINDS[item["type"]]) and _ID.fullmatch(item["id"])


@pytest.mark.parametrize("item_id", ["msg-1", "gen-1|x", "é", "fc:1/2", ""])
def test_pitfall_48_ids_of_others_are_taken_whatever_they_look_like(item_id: str) -> None:
    message = {"type": "message", "id": item_id, "role": "assistant", "content": "x"}
    assert len(chat(input=[{**USER, "id": item_id}, message, {**USER, "id": item_id}])["messages"]) == 3


@pytest.mark.parametrize("call_id", ["call é", 'call"1', "call\n1"])
def test_pitfall_48_an_upstreams_id_that_clients_cannot_keep_is_replaced(call_id: str) -> None:
    (item,) = final(streamed(call('{"x":1}', "f", id=call_id, index=0), finish="tool_calls"))["output"]
    assert _ID.fullmatch(item["call_id"]) and item["call_id"] != call_id


def test_pitfall_49_no_id_of_ours_is_sent_to_the_upstream() -> None:
    before = chain({**USER, "id": "msg_ours"}, {"id": "msg_2", "role": "assistant", "content": "x"})
    made = chat(context=before, previous_response_id="resp_before", input="more")
    assert "resp_before" not in json.dumps(made) and "msg_" not in json.dumps(made)


def test_pitfall_50_one_response_has_one_id_from_the_first_event_to_the_store() -> None:
    outcome = streamed(chunk(content="x"))
    ids = {event["response"]["id"] for event in events(outcome) if "response" in event}
    assert ids == {outcome.records[0].id} and len(outcome.records) == 1
    output = final(outcome)["output"]
    assert [item["id"] for item in output] == [item.id for item in outcome.records[0].output_items]


@pytest.mark.parametrize("given", [None, "", "chatcmpl-1", 7])
def test_pitfall_51_the_upstreams_own_id_does_not_matter(given: Any) -> None:
    body = {"id": given, "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
    found = run({"model": "m", "input": "hi"}, [json.dumps(body).encode()], headers=JSON).json
    assert found["id"].startswith("resp_")
    outcome = streamed({"id": given, **chunk(content="x")})
    assert final(outcome)["id"].startswith("resp_")


def test_pitfall_52_an_item_has_one_id_in_all_its_events_and_it_is_not_the_call_id() -> None:
    found = _all_kinds()
    for index in range(4):
        of_item = [event for event in found if event.get("output_index") == index]
        ids = {event.get("item_id") or event["item"]["id"] for event in of_item}
        assert len(ids) == 1, of_item
        item = of_item[-1]["item"]
        assert item["id"] in ids and item.get("call_id") not in ids


def test_pitfall_53_argument_deltas_have_the_item_id_that_was_announced() -> None:
    found = _all_kinds()
    announced = {event["item"]["id"] for event in found if event["type"] == "response.output_item.added"}
    deltas = [event for event in found if event["type"].endswith(("arguments.delta", "input.delta"))]
    assert len(deltas) == 2
    for event in deltas:
        assert event["item_id"] in announced and "call_id" not in event


@pytest.mark.parametrize("call_id", ["call_1", "function-call-123456789", "toolu_01AbC", "0", "x" * 64])
def test_pitfall_54_an_upstreams_call_id_is_kept(call_id: str) -> None:
    (item,) = final(streamed(call('{"x":1}', "f", id=call_id, index=0), finish="tool_calls"))["output"]
    assert item["call_id"] == call_id
    if len(call_id) <= 40:
        made = chat(input=[USER, call_item(call_id), output_item(call_id)])
        assert made["messages"][1]["tool_calls"][0]["id"] == call_id


def test_pitfall_55_the_same_call_id_in_two_turns_is_two_calls() -> None:
    first = [call_item("call_1", arguments='{"x":1}'), output_item("call_1", "one")]
    second = [call_item("call_1", arguments='{"x":2}'), output_item("call_1", "two")]
    made = chat(input=[USER, *first, {"role": "assistant", "content": "so"}, USER, *second])
    calls = [one["function"]["arguments"] for turn in made["messages"] for one in turn.get("tool_calls", ())]
    outputs = [message["content"] for message in made["messages"] if message["role"] == "tool"]
    assert calls == ['{"x":1}', '{"x":2}'] and outputs == ["one", "two"]


def test_pitfall_55_one_request_knows_nothing_of_another() -> None:
    for number in ("1", "2"):
        outcome = streamed(
            chunk(reasoning_content=number), call("{}", "f", id="call_1", index=0), finish="tool_calls", store=False
        )
        output = final(outcome)["output"]
        assert output[0]["content"][0]["text"] == number and output[1]["call_id"] == "call_1"
        assert output[0]["id"] == "rs_1"
