"""A request that was served before: its client gets what was stored then, in the form that it asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import Finish, FollowResponse, LoadContext, RequestHead, SendHead
from antiphon.engine.ports.state import StoredResponse
from antiphon.errors import NotFound
from antiphon.translation.request.body import read_manner
from antiphon.types.views import Manner
from tests.support.exchanges import JSON, Outcome, make_exchange, pump, run
from tests.support.judge import check_response, check_stream, parse_sse

_HEAD = RequestHead("POST", "/v1/responses", (), "owner")
_ANSWER = b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}'
_ASK: dict[str, Any] = {"model": "m", "input": "hi"}
_PROMPT: dict[str, Any] = {"prompt": {"id": "pmpt_1"}, "input": "hi"}


def _stored() -> tuple[StoredResponse, Any]:
    """A response as a store has it, and as its client got it."""
    outcome = run(_ASK, [_ANSWER], headers=JSON)
    (record,) = outcome.records
    return StoredResponse(record.id, record.status, record.body, record.output_items), outcome.json


def _again(stored: StoredResponse, request: dict[str, Any]) -> ResponseExchange:
    exchange = make_exchange()
    exchange.receive_request(_HEAD, json.dumps(request).encode())
    exchange.answer_again(stored)
    assert exchange.known.replayed and exchange.known.response_id == stored.id
    return exchange


@pytest.mark.parametrize("request_", [_ASK, _PROMPT], ids=["read", "unread"])
@pytest.mark.parametrize("stream", [True, False])
def test_it_is_told_as_an_object_or_as_events(request_: dict[str, Any], stream: bool) -> None:
    """One whose prompt was not loaded has not been read, and need not be."""
    stored, shown = _stored()
    exchange, outcome = _again(stored, {**request_, "stream": stream}), Outcome()
    pump(exchange, outcome)
    assert exchange.done and not outcome.calls and not outcome.records and not outcome.loads
    assert outcome.head is not None and ("idempotent-replayed", "true") in outcome.head.headers
    if stream:
        assert check_stream(parse_sse(outcome.body)) == shown
    else:
        check_response(outcome.json)
        assert outcome.json == shown
    assert outcome.finish == Finish("completed", None, exchange.known.model)


@pytest.mark.parametrize("request_", [_ASK, _PROMPT], ids=["read", "unread"])
def test_of_a_background_response_the_stream_is_followed_once_more(request_: dict[str, Any]) -> None:
    stored, _ = _stored()
    exchange = _again(stored, {**request_, "stream": True, "background": True})
    head, follow = exchange.actions()
    assert isinstance(head, SendHead) and head.streamed and ("idempotent-replayed", "true") in head.headers
    assert follow == FollowResponse("owner", stored.id) and exchange.state is State.FOLLOWING
    assert exchange.needs_drive
    exchange.receive_followed()
    assert [type(action) for action in exchange.actions()] == [Finish]


def test_without_a_stream_a_background_response_is_told_as_it_is_now() -> None:
    stored, shown = _stored()
    exchange, outcome = _again(stored, {**_ASK, "background": True}), Outcome()
    pump(exchange, outcome)
    assert outcome.json == shown and exchange.done


def test_what_would_be_loaded_and_locked_for_the_request_is_not() -> None:
    stored, _ = _stored()
    exchange, outcome = _again(stored, {**_ASK, "conversation": "conv_a"}), Outcome()
    pump(exchange, outcome)
    assert outcome.loads == [] and outcome.releases == [] and exchange.done


def test_a_key_that_is_held_for_a_response_is_given_back_when_that_is_refused() -> None:
    exchange, outcome = make_exchange(), Outcome()
    exchange.receive_request(_HEAD, json.dumps({**_ASK, "previous_response_id": "resp_0"}).encode())
    (load,) = exchange.actions()
    assert isinstance(load, LoadContext) and exchange.makes_response
    exchange.claim()
    response_id = exchange.known.response_id
    exchange.receive_context(NotFound("It is gone."))
    pump(exchange, outcome)
    assert [release.response_id for release in outcome.releases] == [response_id]
    assert not exchange.makes_response, "it is over"


@pytest.mark.parametrize(
    ("body", "manner"),
    [
        (b'{"stream":true,"background":true,"prompt":{"id":"pmpt_1"}}', Manner(True, True)),
        (b'{"prompt":{"id":"pmpt_1"}}', Manner(None, None)),
        # Nothing but the prompt was looked at yet.
        (b'{"stream":"yes"}', Manner(None, None)),
        (b'{"stream":', Manner(None, None)),
    ],
)
def test_how_an_answer_is_to_come_is_known_before_a_request_is_read(body: bytes, manner: Manner) -> None:
    assert read_manner(body) == manner
