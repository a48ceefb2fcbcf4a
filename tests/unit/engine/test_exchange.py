"""The exchange's table, walked completely, and its rules by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.states import TRANSITIONS, Input, State
from antiphon.engine.ports.actions import (
    CallUpstream,
    CancelReason,
    Chain,
    Context,
    Finish,
    LoadContext,
    PrepareTools,
    RequestHead,
    RunTools,
    SaveResponse,
    SendBody,
    SendHead,
    StoredItem,
)
from antiphon.engine.ports.hosted_tools import ToolResult
from antiphon.engine.ports.state import StoredResponse
from antiphon.errors import ApiError, AtCapacity, ExchangeStateError, StoreError
from antiphon.translation.events.encode import KEEPALIVE
from antiphon.translation.profiles import PROFILES
from antiphon.types.transport import LOCAL_REPLY, UpstreamError, UpstreamFault
from tests.support.exchanges import JSON, SSE, Outcome, limits, make_exchange, pump, run
from tests.support.hosted_tools import ScriptedTools
from tests.support.judge import check_stream, parse_sse

_HEAD = RequestHead("POST", "/v1/responses", (), "owner")
_CHUNK = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
_END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
_STREAM = json.dumps({"model": "m", "input": "hi", "stream": True}).encode()
_BACKGROUND = json.dumps({"model": "m", "input": "hi", "stream": True, "background": True}).encode()


_SEARCHING = json.dumps({"model": "m", "input": "hi", "stream": True, "tools": [{"type": "file_search"}]}).encode()
_SEARCH = (
    b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"call_a","function":'
    b'{"name":"file_search","arguments":"{}"}}]}}]}\n\n'
)


def _in_state(state: State) -> ResponseExchange:
    """A streaming exchange that was brought to this state."""
    exchange = make_exchange()
    if state is State.NEW:
        return exchange
    if state is State.FOLLOWING:
        exchange = make_exchange()
        exchange.receive_request(_HEAD, _BACKGROUND)
        exchange.receive_saved()
    elif state in (State.PREPARING, State.RUNNING):
        exchange = make_exchange(tool_types=ScriptedTools.types)
        exchange.receive_request(_HEAD, _SEARCHING)
        if state is State.RUNNING:
            (preparing,) = exchange.actions()
            assert isinstance(preparing, PrepareTools)
            exchange.receive_tools(ScriptedTools().prepare_now(preparing.tools))
            exchange.receive_upstream_head(200, SSE)
            exchange.receive_upstream_data(_SEARCH + _END)
    elif state is State.PASSING:
        exchange = make_exchange(routes=_NATIVE)
        exchange.receive_request(_HEAD, _STREAM)
        exchange.receive_upstream_head(200, SSE)
    elif state is State.CONTEXT:
        body = json.dumps({"model": "m", "input": "hi", "previous_response_id": "resp_x"}).encode()
        exchange.receive_request(_HEAD, body)
    else:
        exchange.receive_request(_HEAD, _STREAM)
        if state is State.REFUSED:
            exchange.receive_upstream_head(500, JSON)
        elif state is State.COLLECTING:
            exchange.receive_upstream_head(200, JSON)
        elif state is not State.CALLING:
            exchange.receive_upstream_head(200, SSE)
            if state in (State.SAVING, State.DONE):
                exchange.receive_upstream_data(_CHUNK + _END)
                if state is State.DONE:
                    exchange.receive_saved()
    assert exchange.state is state
    exchange.actions()
    return exchange


_NATIVE = ModelRoutes(
    ModelRoute(PROFILES["generic"]), (ModelRule("*", ModelRoute(PROFILES["generic"], upstream="other", mode="native")),)
)


_STORED = StoredResponse("resp_x", "completed", b'{"id":"resp_x","status":"completed"}', ())


def _happen(exchange: ResponseExchange, happening: Input) -> None:
    if happening is Input.REQUEST:
        exchange.receive_request(_HEAD, _STREAM)
    elif happening is Input.CONTEXT:
        exchange.receive_context(Context(chain=Chain(())))
    elif happening is Input.HEAD:
        exchange.receive_upstream_head(200, SSE)
    elif happening is Input.DATA:
        exchange.receive_upstream_data(_CHUNK)
    elif happening is Input.END:
        exchange.receive_upstream_end()
    elif happening is Input.SAVED:
        exchange.receive_saved()
    elif happening is Input.PREPARED:
        exchange.receive_tools(())
    elif happening is Input.TOOL:
        exchange.receive_tool_result(ToolResult("call_a", "found", {}))
    elif happening is Input.FOLLOWED:
        exchange.receive_followed()
    elif happening is Input.TURNED_AWAY:
        exchange.turn_away(AtCapacity("There is no room.", "limits.requests"))
    elif happening is Input.AGAIN:
        exchange.answer_again(_STORED)
    elif happening is Input.LIMIT:
        exchange.receive_time(0.0)
        exchange.receive_time(1e9)
    else:
        exchange.cancel(CancelReason.CLIENT_GONE)


def test_of_a_response_whose_client_left_no_events_are_made() -> None:
    exchange = _in_state(State.STREAMING)
    exchange.receive_upstream_data(_CHUNK)
    exchange.actions()
    exchange.cancel(CancelReason.CLIENT_GONE)
    (save,) = exchange.actions()
    assert isinstance(save, SaveResponse)
    assert b"Hi" in save.record.output_items[0].body
    assert exchange.known.builder is not None and exchange.known.builder.take() == b""


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("happening", Input)
def test_every_pair_of_state_and_input(state: State, happening: Input) -> None:
    exchange = _in_state(state)
    allowed = TRANSITIONS[state].get(happening)
    if allowed is None:
        with pytest.raises(ExchangeStateError):
            _happen(exchange, happening)
        assert exchange.state is state
    else:
        _happen(exchange, happening)
        assert exchange.state in allowed


def test_saved_before_the_terminal_event() -> None:
    """Whoever sees the end can continue from it: the save is asked for first, the terminal event follows it."""
    exchange = make_exchange()
    exchange.receive_request(_HEAD, _STREAM)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK + _END)
    actions = exchange.actions()
    assert isinstance(actions[-1], SaveResponse)
    assert not any(isinstance(action, SendBody) and b"response.completed" in action.data for action in actions)
    exchange.receive_saved()
    body, finish = exchange.actions()
    assert isinstance(body, SendBody) and b"response.completed" in body.data and body.data.endswith(b"[DONE]\n\n")
    assert isinstance(finish, Finish) and finish.outcome == "completed"


def test_a_failed_save_is_never_a_success() -> None:
    exchange = make_exchange()
    exchange.receive_request(_HEAD, _STREAM)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK + _END)
    exchange.actions()
    exchange.receive_saved(StoreError("disk full"))
    body, finish = exchange.actions()
    assert isinstance(body, SendBody) and b"response.failed" in body.data and b"completed\n" not in body.data
    assert isinstance(finish, Finish) and finish.outcome == "failed"
    exchange = make_exchange()
    exchange.receive_request(_HEAD, b'{"model":"m","input":"hi"}')
    exchange.receive_upstream_head(200, JSON)
    exchange.receive_upstream_data(b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}')
    exchange.receive_upstream_end()
    exchange.actions()
    exchange.receive_saved(StoreError("disk full"))
    head = exchange.actions()[0]
    assert isinstance(head, SendHead) and head.status == 500


@pytest.mark.parametrize("stream", [True, False])
def test_cancel_stores_failed(stream: bool) -> None:
    exchange = make_exchange()
    body = json.dumps({"model": "m", "input": "hi", "stream": stream}).encode()
    exchange.receive_request(_HEAD, body)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK)
    exchange.actions()
    exchange.cancel(CancelReason.CLIENT_GONE)
    (save,) = exchange.actions()
    assert isinstance(save, SaveResponse)
    assert save.record.status == "failed"
    assert json.loads(save.record.output_items[0].body)["status"] == "incomplete"
    exchange.receive_saved()
    (finish,) = exchange.actions()
    assert isinstance(finish, Finish) and finish.outcome == "cancelled" and exchange.done


def test_store_false_saves_nothing() -> None:
    outcome = run({"model": "m", "input": "hi", "stream": True, "store": False}, [_CHUNK, _END])
    assert not outcome.records
    assert check_stream(parse_sse(outcome.body))["status"] == "completed"


@pytest.mark.parametrize("fault", UpstreamFault)
@pytest.mark.parametrize("stream", [True, False])
def test_no_head_is_an_http_error(fault: UpstreamFault, stream: bool) -> None:
    exchange = make_exchange()
    exchange.receive_request(_HEAD, json.dumps({"model": "m", "input": "hi", "stream": stream}).encode())
    outcome = Outcome()
    pump(exchange, outcome)
    exchange.receive_upstream_end(UpstreamError(fault, "secret detail"))
    pump(exchange, outcome)
    assert outcome.head is not None and outcome.head.status in (502, 504)
    assert b"secret" not in outcome.body and not outcome.records


# States in which the client has the head of an event stream of ours.
_OPEN = frozenset({State.RUNNING, State.STREAMING, State.SAVING, State.FOLLOWING})


@pytest.mark.parametrize("state", State)
def test_silence_is_a_comment_in_an_open_stream_and_nothing_elsewhere(state: State) -> None:
    """What an upstream is still saying may become an error with a length: not a byte may come before it."""
    exchange = _in_state(state)
    exchange.receive_silence()
    sent = exchange.actions()
    if state is State.CALLING:
        assert isinstance(sent[0], SendHead) and sent[0].streamed
        exchange.receive_silence()
        sent = exchange.actions()
    assert exchange.state is state
    assert sent == ([SendBody(KEEPALIVE)] if state in _OPEN | {State.CALLING} else [])


def test_a_late_head_opens_the_stream_and_failures_become_events() -> None:
    exchange = make_exchange()
    exchange.receive_request(_HEAD, _STREAM)
    outcome = Outcome()
    pump(exchange, outcome)
    exchange.receive_silence()
    pump(exchange, outcome)
    assert outcome.head is not None and outcome.head.status == 200 and b"response.created" in outcome.body
    exchange.receive_upstream_head(429, JSON)
    exchange.receive_upstream_data(b'{"error":{"message":"slow down"}}')
    exchange.receive_upstream_end()
    pump(exchange, outcome)
    final = check_stream(parse_sse(outcome.body))
    assert final["status"] == "failed" and final["error"] == {"code": "rate_limit_exceeded", "message": "slow down"}
    assert outcome.records[0].status == "failed"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 503])
@pytest.mark.parametrize("stream", [True, False])
def test_a_refused_call_keeps_its_status(status: int, stream: bool) -> None:
    body = b'{"error":{"message":"No such model","type":"x","param":null,"code":null}}'
    request = {"model": "m", "input": "hi", "stream": stream}
    outcome = run(request, [body], status=status, headers=(*JSON, ("retry-after", "7")))
    assert outcome.head is not None and outcome.head.status == status
    assert outcome.json["error"]["message"] == "No such model"
    assert ("retry-after", "7") in outcome.head.headers
    assert not outcome.records and outcome.finish is not None and outcome.finish.outcome == "error"


@pytest.mark.parametrize("body", [b"", b"<html>oops</html>", b"{", b"[]", b'{"choices":[]}', b"null"])
@pytest.mark.parametrize("stream", [True, False])
def test_garbage_with_status_200_is_a_502(body: bytes, stream: bool) -> None:
    request = {"model": "m", "input": "hi", "stream": stream}
    outcome = run(request, [body], headers=(("content-type", "text/html"),))
    assert outcome.head is not None and outcome.head.status == 502
    assert outcome.json["error"]["type"] == "server_error"


def test_cut_in_the_middle_is_failed_not_completed() -> None:
    error = UpstreamError(UpstreamFault.CUT, "reset")
    outcome = run({"model": "m", "input": "hi", "stream": True}, [_CHUNK], error=error)
    final = check_stream(parse_sse(outcome.body))
    assert final["status"] == "failed" and final["error"]["code"] == "upstream_cut"
    assert outcome.records[0].status == "failed"
    single = run({"model": "m", "input": "hi"}, [_CHUNK], error=error)
    assert single.head is not None and single.head.status == 502


def test_event_stream_for_a_json_client_is_folded() -> None:
    outcome = run({"model": "m", "input": "hi"}, [_CHUNK, _END])
    assert outcome.json["output"][0]["content"][0]["text"] == "Hi"


def test_unknown_previous_response() -> None:
    outcome = run({"model": "m", "input": "hi", "previous_response_id": "resp_nope"})
    assert outcome.loads == [LoadContext("owner", "resp_nope", ())]
    assert outcome.head is not None and outcome.head.status == 400
    assert outcome.json["error"]["code"] == "previous_response_not_found"
    assert outcome.json["error"]["param"] == "previous_response_id"


def test_history_comes_before_the_input_and_instructions_do_not_carry_over() -> None:
    first = run({"model": "m", "input": "one", "instructions": "be brief"}, [_CHUNK, _END])
    record = first.records[0]
    chain = Chain((*record.input_items, *record.output_items))
    second = run(
        {"model": "m", "input": "two", "previous_response_id": record.id}, [_CHUNK, _END], context=Context(chain)
    )
    assert second.chat["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "one"}][0]["text"]},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "two"},
    ]
    assert second.json["previous_response_id"] == record.id
    assert [json.loads(item.body)["content"][0]["text"] for item in second.records[0].input_items] == ["two"]


def test_item_reference_is_resolved_or_refused() -> None:
    body = b'{"id":"msg_9","type":"message","role":"assistant","content":[{"type":"output_text","text":"yes"}]}'
    items = {"msg_9": StoredItem("msg_9", "message", body)}
    request = {"model": "m", "input": [{"type": "item_reference", "id": "msg_9"}, {"role": "user", "content": "so?"}]}
    outcome = run(request, [_CHUNK, _END], context=Context(items=items))
    assert [message["role"] for message in outcome.chat["messages"]] == ["assistant", "user"]
    missing = run(request, context=Context())
    assert missing.head is not None and missing.head.status == 400
    assert missing.json["error"]["param"] == "input[0].id"


def test_reasoning_that_only_names_itself_is_read_from_the_store() -> None:
    """LangChain keeps the id of streamed reasoning, and nothing it said."""
    body = b'{"id":"rs_9","type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"hm"}]}'
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "ok"}
    hollow = {"type": "reasoning", "id": "rs_9", "summary": [], "content": []}
    request = {"model": "m", "input": [{"role": "user", "content": "u"}, hollow, call, output]}
    known = run(request, [_CHUNK, _END], context=Context(items={"rs_9": StoredItem("rs_9", "reasoning", body)}))
    assert known.chat["messages"][1]["reasoning_content"] == "hm"
    # Somebody else's id is no error: it is left out as before.
    unknown = run(request, [_CHUNK, _END], context=Context())
    assert "reasoning_content" not in unknown.chat["messages"][1]


def test_an_id_of_an_earlier_call_is_not_used_again() -> None:
    """Some servers count calls from 0 in every answer; clients tell calls apart by their ids."""
    call = {"type": "function_call", "call_id": "0", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "0", "output": "ok"}
    delta = b'{"tool_calls":[{"index":0,"id":"0","function":{"name":"f","arguments":"{}"}}]}'
    chunk = b'data: {"choices":[{"index":0,"delta":%b,"finish_reason":"tool_calls"}]}\n\n' % delta
    made = run({"model": "m", "input": [{"role": "user", "content": "u"}, call, output]}, [chunk, _END])
    [again] = made.json["output"]
    assert again["call_id"].startswith("call_")
    fresh = run({"model": "m", "input": "u"}, [chunk, _END])
    assert fresh.json["output"][0]["call_id"] == "0"


def test_headers_reach_the_upstream_by_an_allow_list() -> None:
    sent = (
        ("authorization", "Bearer k"),
        ("cookie", "c"),
        ("x-antiphon-owner", "me"),
        ("x-custom", "1"),
        ("traceparent", "t"),
    )
    outcome = run(
        {"model": "m", "input": "hi"},
        [_CHUNK, _END],
        client_headers=sent,
        upstream_headers=frozenset({"x-custom"}),
        passthrough=True,
    )
    names = [name for name, _ in outcome.calls[0].request.headers]
    assert names == ["content-type", "accept", "authorization", "x-custom", "traceparent"]
    outcome = run({"model": "m", "input": "hi"}, [_CHUNK, _END], client_headers=sent, passthrough=False)
    assert "authorization" not in [name for name, _ in outcome.calls[0].request.headers]


def test_limits_are_failures_with_names() -> None:
    long = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 5000)
    outcome = run({"model": "m", "input": "hi", "stream": True}, [long], limits=limits(sse_event_bytes=1024))
    assert parse_sse(outcome.body)[-1]["response"]["error"]["code"] == "upstream_too_large"
    outcome = run({"model": "m", "input": "hi", "stream": True}, [long], limits=limits(upstream_body_bytes=1024))
    assert parse_sse(outcome.body)[-1]["response"]["error"]["code"] == "upstream_too_large"
    many = b"".join(
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":%d,"id":"c%d",'
        b'"function":{"name":"f","arguments":"{}"}}]}}]}\n\n' % (number, number)
        for number in range(5)
    )
    outcome = run({"model": "m", "input": "hi", "stream": True}, [many], limits=limits(tool_calls=3))
    assert parse_sse(outcome.body)[-1]["response"]["error"]["code"] == "upstream_too_large"
    outcome = run({"model": "m", "input": [{"role": "user", "content": "x"}] * 3}, limits=limits(input_items=2))
    assert outcome.json["error"]["code"] == "array_above_max_length"
    body = b'{"choices":[{"message":{"content":"%b"}}]}' % (b"x" * 5000)
    outcome = run({"model": "m", "input": "hi"}, [body], headers=JSON, limits=limits(upstream_body_bytes=1024))
    assert outcome.head is not None and outcome.head.status == 502


def test_after_an_error_in_the_stream_nothing_of_it_is_read() -> None:
    exchange = make_exchange()
    exchange.receive_request(_HEAD, _STREAM)
    (call,) = exchange.actions()
    assert isinstance(call, CallUpstream)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(b'data: {"error":{"message":"boom"}}\n\n')
    assert isinstance(exchange.actions()[-1], SaveResponse)
    exchange.receive_upstream_data(_CHUNK)
    exchange.receive_upstream_end()
    assert exchange.actions() == [] and exchange.state is State.SAVING


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("stream", [True, False])
def test_a_wrong_key_of_the_gateway_is_not_the_clients(stream: bool, status: int) -> None:
    told = b'{"error":{"message":"Invalid API Key","code":"invalid_api_key"}}'
    request = {"model": "m", "input": "hi", "stream": stream}
    theirs = run(request, [told], status=status, headers=JSON, passthrough=True)
    assert theirs.head is not None and theirs.head.status == status
    ours = run(request, [told], status=status, headers=JSON, passthrough=False)
    assert ours.head is not None and ours.head.status == 502
    error = ours.json["error"]
    assert error["code"] == "upstream_credentials_refused" and "gateway's own credentials" in error["message"]
    assert b"Invalid API Key" not in ours.body


def test_of_a_large_response_the_row_alone_is_kept_when_the_process_stops() -> None:
    """It has a moment left for all its responses together."""
    kept = {}
    for reason in (CancelReason.SHUTTING_DOWN, CancelReason.CLIENT_GONE):
        exchange = _in_state(State.STREAMING)
        for _ in range(30):
            exchange.receive_upstream_data(_CHUNK.replace(b"Hi", b"x" * 100_000))
        exchange.actions()
        exchange.cancel(reason)
        (save,) = [action for action in exchange.actions() if isinstance(action, SaveResponse)]
        assert save.record.status == "failed" and save.record.id == exchange.known.response_id
        kept[reason] = sum(len(item.body) for item in save.record.output_items)
    assert kept[CancelReason.SHUTTING_DOWN] == 0 and kept[CancelReason.CLIENT_GONE] > 3_000_000


def test_an_answer_that_envoy_gave_itself_is_none_of_the_upstreams() -> None:
    """Envoy marks it with a header that no upstream can send: nobody was reached, whatever the body says."""
    envoys = (*JSON, (LOCAL_REPLY, "unreachable:no_healthy_upstream"))
    body = b'{"error":{"message":"Overloaded."}}'
    outcome = run({"model": "m", "input": "hi"}, [body], status=503, headers=envoys)
    assert outcome.head is not None and outcome.head.status == 502
    assert outcome.json["error"]["code"] == "upstream_unreachable" and b"Overloaded" not in outcome.body
    assert LOCAL_REPLY not in dict(outcome.head.headers)
    theirs = run({"model": "m", "input": "hi"}, [body], status=503, headers=JSON)
    assert theirs.head is not None and theirs.head.status == 503 and b"Overloaded" in theirs.body


def test_the_header_that_names_what_has_no_effect_has_an_end() -> None:
    unknown = {f"unheard_of_{number:03}": 1 for number in range(200)}
    outcome = run({"model": "m", "input": "hi", **unknown}, [_CHUNK, _END])
    assert outcome.head is not None
    (told,) = (value for name, value in outcome.head.headers if name == "antiphon-ignored")
    names = told.split(",")
    assert len(told) <= 1024 and names[-1] == "..."
    assert {name.strip() for name in names[:-1]} < set(unknown) and len(set(names)) == len(names) > 50


@pytest.mark.parametrize("begun", [True, False])
def test_a_stream_that_is_too_large_for_whoever_carries_it_fails(begun: bool) -> None:
    exchange = _in_state(State.STREAMING if begun else State.CONTEXT)
    if begun:
        exchange.receive_upstream_data(_CHUNK)
        assert exchange.known.output_bytes == len(b"Hi")
        exchange.actions()
    exchange.receive_too_much(ApiError("The stream is too large.", code="stream_too_large"))
    if not begun:
        assert exchange.state is State.CONTEXT, "nothing was carried yet"
        return
    (save,) = [action for action in exchange.actions() if isinstance(action, SaveResponse)]
    assert save.record.status == "failed" and b"stream_too_large" in save.record.body


def test_where_an_error_event_would_end_more_than_the_response_there_is_none() -> None:
    kinds = {}
    for wanted in (True, False):
        exchange, outcome = make_exchange(), Outcome()
        exchange.error_events = wanted
        exchange.receive_request(_HEAD, _STREAM)
        pump(exchange, outcome)
        exchange.receive_upstream_head(200, SSE)
        exchange.receive_upstream_data(_CHUNK)
        exchange.receive_upstream_end()
        pump(exchange, outcome)
        kinds[wanted] = [event["type"] for event in parse_sse(outcome.body)]
    assert kinds[True][-2:] == ["error", "response.failed"]
    assert kinds[False] == [kind for kind in kinds[True] if kind != "error"]


_WARM = {"model": "m", "input": "hi", "prompt_cache_options": {"prewarm": True}}
_TOOLS_ALONE = {"type": "additional_tools", "role": "developer", "tools": [{"type": "custom", "name": "exec"}]}


@pytest.mark.parametrize("input_", ["hi", [_TOOLS_ALONE]], ids=["words", "tools alone"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_prewarm_is_checked_stored_and_answered_without_a_model(stream: bool, input_: Any) -> None:
    """Later requests continue it. With tools alone there is nothing that a chat server could be asked."""
    outcome = run({**_WARM, "input": input_, "stream": stream})
    assert not outcome.calls and outcome.finish is not None and outcome.finish.outcome == "completed"
    if stream:
        events = parse_sse(outcome.body)
        assert [event["type"] for event in events] == [
            "response.created",
            "response.in_progress",
            "response.completed",
        ]
        final = check_stream(events)
    else:
        final = outcome.json
    assert (final["status"], final["output"], final["usage"]["total_tokens"]) == ("completed", [], 0)
    (record,) = outcome.records
    assert (record.status, record.output_items, len(record.input_items)) == ("completed", (), 1)
    wrong = run({**_WARM, "input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]})
    assert wrong.head is not None and wrong.head.status == 400


def test_an_upstream_that_says_a_lot_without_output_floods() -> None:
    """Others come first then; output, whose every byte pays for many, ends it."""
    exchange = _in_state(State.STREAMING)
    exchange.receive_upstream_data(_CHUNK)
    for _ in range(8):
        assert not exchange.floods
        exchange.receive_upstream_data(b": nothing\n\n" * 3_000)
    assert exchange.floods and exchange.state is State.STREAMING
    exchange.receive_upstream_data(_CHUNK.replace(b"Hi", b"x" * 1_000))
    assert not exchange.floods


def test_a_response_that_is_not_stored_is_known_to_its_connection_and_has_its_usage() -> None:
    exchange, outcome = make_exchange(), Outcome()
    exchange.receive_request(_HEAD, json.dumps({"model": "m", "input": "hi", "store": False}).encode())
    pump(exchange, outcome)
    assert exchange.known.usage is None and exchange.unstored_record() is None
    exchange.receive_upstream_head(200, JSON)
    usage = b'{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3}'
    exchange.receive_upstream_data(
        b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}],"usage":%b}' % usage
    )
    exchange.receive_upstream_end()
    pump(exchange, outcome)
    record = exchange.unstored_record()
    assert record is not None and record.id == outcome.json["id"] and not outcome.records
    assert exchange.known.usage is not None and exchange.known.usage.total_tokens == 3


@pytest.mark.parametrize(
    ("request_", "drives"),
    [
        ({}, False),
        ({"stream": True}, False),
        ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, False),
        ({"tools": [{"type": "web_search"}]}, True),
        ({"background": True}, True),
        ({"context_management": [{"type": "compaction", "compact_threshold": 5000}]}, True),
    ],
)
def test_what_cannot_be_relayed(request_: dict[str, Any], drives: bool) -> None:
    """Of several model calls, or one that nobody waits for, Envoy makes none."""
    exchange = make_exchange(tool_types=frozenset({"web_search"}))
    body = json.dumps({"model": "m", "input": "hi", **request_}).encode()
    exchange.receive_request(_HEAD, body)
    assert exchange.needs_drive is drives and exchange.makes_response
    assert exchange.request_bytes == len(body)


def test_only_what_makes_a_response_takes_a_key() -> None:
    assert make_exchange().request_bytes == 0
    for path, makes in (
        ("/v1/responses", True),
        ("/v1/responses/compact", False),
        ("/v1/responses/input_tokens", False),
    ):
        exchange = make_exchange()
        exchange.receive_request(RequestHead("POST", path, (), "owner"), b'{"model":"m","input":"hi"}')
        assert exchange.makes_response is makes
    prewarm = make_exchange()
    prewarm.generate = False
    prewarm.receive_request(_HEAD, b'{"model":"m","input":"hi"}')
    assert not prewarm.makes_response


@pytest.mark.parametrize(
    ("shown_as", "reasoning", "summary"),
    [
        ("summary", None, True),
        ("content", {"summary": "auto"}, False),
        ("auto", None, False),
        ("auto", {"effort": "low"}, False),
        ("auto", {"summary": "auto"}, True),
        ("auto", {"generate_summary": "auto"}, True),
    ],
)
def test_reasoning_is_a_summary_where_one_is_asked_for(shown_as: str, reasoning: Any, summary: bool) -> None:
    message = {"role": "assistant", "reasoning_content": "hm", "content": "so"}
    answer = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
    request = {"model": "m", "input": "hi", **({"reasoning": reasoning} if reasoning is not None else {})}
    item = run(request, [answer], headers=JSON, reasoning_as=shown_as).json["output"][0]
    assert item["type"] == "reasoning" and bool(item["summary"]) is summary
    assert bool(item.get("content")) is not summary


def _whole(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()


@pytest.mark.parametrize("text", ["data: x", "d", "event: y\n\ndata: z"])
def test_an_object_that_speaks_of_data_is_an_object(text: str) -> None:
    for body in (_whole(text), b" \n" + _whole(text)):
        outcome = run({"model": "m", "input": "hi"}, [body], headers=JSON)
        assert outcome.json["output"][0]["content"][0]["text"] == text


@pytest.mark.parametrize(
    ("before", "read"),
    [
        (b"", True),
        (b"\n ", True),
        (b": a comment\n\n", True),
        (b"event: x\n", True),
        (b":" + b" " * 4088 + b"\n\n", True),
        (b":" + b" " * 4089 + b"\n\n", False),
    ],
)
def test_an_event_stream_that_does_not_say_so_is_known_by_its_beginning(before: bytes, read: bool) -> None:
    outcome = run({"model": "m", "input": "hi"}, [before + _CHUNK, _END], headers=JSON)
    assert outcome.head is not None and outcome.head.status == (200 if read else 502)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("size", "fits"), [(0, True), (1, False)])
def test_an_answer_may_be_as_large_as_the_limit(size: int, fits: bool, stream: bool) -> None:
    body = _whole("some text")
    most = limits(upstream_body_bytes=len(body) - size)
    outcome = run({"model": "m", "input": "hi", "stream": stream}, [body], headers=JSON, limits=most)
    assert outcome.head is not None and outcome.head.status == (200 if fits else 502)
    if not fits:
        assert outcome.json["error"]["code"] == "upstream_too_large"


def test_what_the_answer_of_a_tool_turn_holds_is_sent_before_the_tools_run() -> None:
    """A client sees what is looked for while it is looked for."""
    exchange, outcome = make_exchange(tool_types=ScriptedTools.types), Outcome()
    exchange.receive_request(_HEAD, _SEARCHING)
    (preparing,) = exchange.actions()
    assert isinstance(preparing, PrepareTools)
    exchange.receive_tools(ScriptedTools().prepare_now(preparing.tools))
    exchange.receive_upstream_head(200, SSE)
    pump(exchange, outcome)
    exchange.receive_upstream_data(_SEARCH + _END)
    actions = exchange.actions()
    sent = b"".join(action.data for action in actions if isinstance(action, SendBody))
    assert b"response.file_search_call.in_progress" in sent and isinstance(actions[-1], RunTools)


@pytest.mark.parametrize("stream", [True, False])
def test_the_last_event_counts_without_an_empty_line_behind_it(stream: bool) -> None:
    last = _END.partition(b"\n\n")[0]
    outcome = run({"model": "m", "input": "hi", "stream": stream}, [_CHUNK, last])
    final = parse_sse(outcome.body)[-1]["response"] if stream else outcome.json
    assert final["status"] == "completed" and final["output"][0]["content"][0]["text"] == "Hi"


@pytest.mark.parametrize(("reason", "status"), [("stop", "completed"), ("length", "incomplete")])
def test_only_what_was_completed_was_completed_at_some_time(reason: str, status: str) -> None:
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": reason}]}
    outcome = run({"model": "m", "input": "hi"}, [json.dumps(answer).encode()], headers=JSON)
    (record,) = outcome.records
    assert record.status == status and (record.completed_at is not None) is (status == "completed")


def test_the_tokens_so_far_are_those_of_ended_calls_and_an_estimate_of_the_one_that_runs() -> None:
    exchange = make_exchange(tool_types=ScriptedTools.types)
    assert exchange.estimated_usage is None, "it makes no response yet"
    tools, outcome = ScriptedTools(), Outcome()
    exchange.receive_request(_HEAD, _SEARCHING)
    pump(exchange, outcome, tools=tools)
    begun = exchange.estimated_usage
    assert begun is not None and begun.input_tokens > 0
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":5,"total_tokens":1005}}\n\n'
    exchange.receive_upstream_head(200, SSE)
    called = _END.replace(b'"stop"', b'"tool_calls"')
    exchange.receive_upstream_data(_SEARCH + called.replace(b"data: [DONE]", usage + b"data: [DONE]"))
    pump(exchange, outcome, tools=tools)
    assert len(outcome.calls) == 2
    second = exchange.estimated_usage
    assert second is not None and second.input_tokens > 1000
    assert second.total_tokens == second.input_tokens + second.output_tokens
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK.replace(b"Hi", b"word " * 400))
    pump(exchange, outcome, tools=tools)
    later = exchange.estimated_usage
    assert later is not None and later.output_tokens >= second.output_tokens + 400
