"""A response on a conversation: what is loaded and locked, what is stored, and that the lock is always given back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import (
    CancelReason,
    Context,
    Finish,
    LoadContext,
    ReleaseConversation,
    RequestHead,
    SaveResponse,
    SendBody,
    SendHead,
    StoredItem,
)
from antiphon.errors import ConversationLocked, StoreError
from tests.support.exchanges import JSON, SSE, make_exchange, run
from tests.support.judge import check_response, check_stream, parse_sse

_HEAD = RequestHead("POST", "/v1/responses", (), "owner")
_CHUNK = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
_END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
_ANSWER = b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}'
REQUEST = {"model": "m", "input": "and now?", "conversation": "conv_1"}
EARLIER = (
    StoredItem(
        "msg_1",
        "message",
        b'{"id":"msg_1","type":"message","status":"completed","role":"user",'
        b'"content":[{"type":"input_text","text":"before"}]}',
    ),
    StoredItem(
        "msg_2",
        "message",
        b'{"id":"msg_2","type":"message","status":"completed","role":"assistant",'
        b'"content":[{"type":"output_text","text":"answered","annotations":[],"logprobs":[]}]}',
    ),
)


def begin(**changes: Any) -> tuple[ResponseExchange, LoadContext]:
    exchange = make_exchange()
    exchange.receive_request(_HEAD, json.dumps({**REQUEST, **changes}).encode())
    (load,) = exchange.actions()
    assert isinstance(load, LoadContext)
    return exchange, load


def kinds(exchange: ResponseExchange) -> list[type]:
    return [type(action) for action in exchange.actions()]


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}])
def test_its_items_come_before_the_input(conversation: Any) -> None:
    outcome = run(
        {**REQUEST, "conversation": conversation, "stream": True},
        [_CHUNK + _END],
        context=Context(conversation=EARLIER),
    )
    assert [(message["role"], message["content"]) for message in outcome.chat["messages"]] == [
        ("user", "before"),
        ("assistant", "answered"),
        ("user", "and now?"),
    ]
    (load,) = outcome.loads
    events = parse_sse(outcome.body)
    check_stream(events)
    response = events[-1]["response"]
    check_response(response)
    assert {event["response"]["conversation"]["id"] for event in events if "response" in event} == {"conv_1"}
    assert (load.conversation, load.lock_for, load.previous_response_id) == ("conv_1", response["id"], None)
    (saved,) = outcome.records
    assert saved.conversation_id == "conv_1" and saved.joins_conversation
    # Its own items, not what was there before.
    assert [json.loads(item.body)["content"][0]["text"] for item in saved.input_items] == ["and now?"]
    assert json.loads(saved.body)["conversation"] == {"id": "conv_1"}


def test_without_a_conversation_there_is_no_such_key() -> None:
    outcome = run({"model": "m", "input": "hi"}, [_ANSWER], headers=JSON)
    assert "conversation" not in outcome.json and outcome.loads == []


def test_input_may_be_empty_when_the_conversation_has_something_to_answer() -> None:
    outcome = run(
        {"model": "m", "conversation": "conv_1"}, [_ANSWER], headers=JSON, context=Context(conversation=EARLIER)
    )
    assert outcome.head is not None and outcome.head.status == 200
    outcome = run({"model": "m", "conversation": "conv_1"}, [_ANSWER], headers=JSON, context=Context(conversation=()))
    assert outcome.head is not None and outcome.head.status == 400


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"previous_response_id": "resp_1"}, "conversation", "mutually_exclusive_parameters"),
        ({"conversation": 5}, "conversation", "invalid_type"),
        ({"conversation": {}}, "conversation.id", "missing_required_parameter"),
        ({"conversation": {"id": 1}}, "conversation.id", "invalid_type"),
        ({"conversation": "conv 1"}, "conversation", "invalid_value"),
        ({"conversation": ""}, "conversation", "invalid_value"),
        ({"conversation": "c" * 65}, "conversation", "invalid_value"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], param: str, code: str) -> None:
    outcome = run({**REQUEST, **changes})
    assert outcome.head is not None and outcome.head.status == 400
    assert (outcome.json["error"]["param"], outcome.json["error"]["code"]) == (param, code)
    assert outcome.loads == []


@pytest.mark.parametrize(
    ("name", "status", "code", "says"),
    [
        ("conv_1", 404, "conversation_not_found", "not found"),
        ("resp_1", 400, "invalid_value", "begins with 'conv_'"),
        ("mine", 400, "invalid_value", "begins with 'conv_'"),
    ],
)
def test_an_unknown_conversation(name: str, status: int, code: str, says: str) -> None:
    outcome = run({**REQUEST, "conversation": name}, context=Context(conversation=None))
    assert outcome.head is not None and outcome.head.status == status
    error = outcome.json["error"]
    assert (error["param"], error["code"]) == ("conversation", code) and says in error["message"]


def test_a_locked_conversation_is_a_409() -> None:
    exchange, _ = begin()
    exchange.receive_context(ConversationLocked())
    release, head, body, finish = exchange.actions()
    assert isinstance(release, ReleaseConversation) and isinstance(finish, Finish)
    assert isinstance(head, SendHead) and head.status == 409
    assert isinstance(body, SendBody) and b'"conversation_locked"' in body.data


def test_what_is_not_stored_only_reads() -> None:
    outcome = run({**REQUEST, "store": False}, [_ANSWER], headers=JSON, context=Context(conversation=EARLIER))
    assert outcome.loads[0].lock_for == "" and outcome.loads[0].conversation == "conv_1"
    assert outcome.records == [] and outcome.releases == []
    assert len(outcome.chat["messages"]) == 3 and outcome.json["conversation"] == {"id": "conv_1"}


# The lock: saving gives it back; every other end does so before the client hears of it.


def test_a_saved_response_needs_no_release() -> None:
    outcome = run({**REQUEST, "stream": True}, [_CHUNK + _END], context=Context(conversation=EARLIER))
    assert len(outcome.records) == 1 and outcome.releases == []


@pytest.mark.parametrize("stream", [True, False])
def test_an_upstream_that_refuses(stream: bool) -> None:
    exchange, load = begin(stream=stream)
    exchange.receive_context(Context(conversation=EARLIER))
    exchange.actions()
    exchange.receive_upstream_head(500, JSON)
    exchange.receive_upstream_end()
    actions = exchange.actions()
    assert [type(action) for action in actions] == [ReleaseConversation, SendHead, SendBody, Finish]
    assert isinstance(actions[0], ReleaseConversation) and actions[0].response_id == load.lock_for


def test_a_request_that_cannot_be_translated() -> None:
    exchange, _ = begin(input=[{"type": "function_call_output", "call_id": "x", "output": "y"}])
    exchange.receive_context(Context(conversation=EARLIER))
    assert kinds(exchange) == [ReleaseConversation, SendHead, SendBody, Finish]


def test_a_client_that_leaves_while_the_conversation_is_loaded() -> None:
    exchange, _ = begin()
    exchange.cancel(CancelReason.CLIENT_GONE)
    assert exchange.state is State.DONE and not exchange.done, "the lock is not given back yet"
    assert kinds(exchange) == [ReleaseConversation, Finish]
    assert exchange.done


def test_a_client_that_leaves_during_the_answer() -> None:
    """The row that is written as failed gives the lock back."""
    exchange, _ = begin(stream=True)
    exchange.receive_context(Context(conversation=EARLIER))
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK)
    exchange.actions()
    exchange.cancel(CancelReason.CLIENT_GONE)
    *_, save = exchange.actions()
    assert isinstance(save, SaveResponse) and save.record.conversation_id == "conv_1"
    assert not save.record.joins_conversation
    exchange.receive_saved()
    assert kinds(exchange) == [Finish]


def test_a_save_that_failed_was_given_back_by_whoever_tried() -> None:
    exchange, _ = begin(stream=True)
    exchange.receive_context(Context(conversation=EARLIER))
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK + _END)
    exchange.actions()
    exchange.receive_saved(StoreError("disk full"))
    assert kinds(exchange) == [SendBody, Finish]


def test_it_is_given_back_once() -> None:
    exchange, _ = begin()
    exchange.receive_context(ConversationLocked())
    exchange.cancel(CancelReason.CLIENT_GONE)
    assert kinds(exchange).count(ReleaseConversation) == 1
