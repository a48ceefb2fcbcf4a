"""What an exchange does with `background: true`: queued here, run again from what was kept."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import (
    CallUpstream,
    CancelReason,
    Context,
    Enqueue,
    Finish,
    FollowResponse,
    LoadContext,
    RequestHead,
    SaveResponse,
    SendBody,
    SendHead,
)
from antiphon.engine.ports.jobs import JobRequest, TooManyJobs, count_events, split_events
from antiphon.errors import ApiError, InvalidRequest, StoreError
from antiphon.sealing import Sealer
from antiphon.translation.profiles import PROFILES
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.transport import Headers
from tests.support.exchanges import JSON, SSE, Outcome, make_exchange, pump
from tests.support.judge import check_response

ASK: dict[str, Any] = {"model": "m", "input": "hi", "background": True}
STREAM = {**ASK, "stream": True}
_ANSWER = [b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n', b'data: {"choices":[{"delta":{},']
_REST = b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def ask(request: dict[str, Any], headers: Headers = (), **options: Any) -> ResponseExchange:
    exchange = make_exchange(**options)
    exchange.receive_request(
        RequestHead("POST", "/v1/responses", headers, "owner", "req_1"), json.dumps(request).encode()
    )
    return exchange


def queued(exchange: ResponseExchange) -> Enqueue:
    (action,) = exchange.actions()
    assert isinstance(action, Enqueue)
    assert exchange.state is State.SAVING and exchange.needs_drive
    return action


def refused(exchange: ResponseExchange) -> dict[str, Any]:
    outcome = Outcome()
    pump(exchange, outcome)
    assert outcome.head is not None and outcome.head.status >= 400 and not outcome.calls
    error: dict[str, Any] = {**outcome.json["error"], "status": outcome.head.status}
    return error


def events_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.split(b"\ndata: ")[1]) for event in split_events(data)]


def run_again(action: Enqueue, last_event: int, body: dict[str, Any] | None = None) -> ResponseExchange:
    exchange = make_exchange()
    job = msgspec.json.decode(action.request, type=JobRequest)
    exchange.receive_job(job, "owner", action.record.id, last_event)
    return exchange


# Queueing


def test_the_client_gets_the_queued_response_once_it_is_stored() -> None:
    exchange = ask({**ASK, "metadata": {"a": "b"}})
    action = queued(exchange)
    assert action.events == b""
    record = action.record
    assert (record.status, record.owner, record.output_items) == ("queued", "owner", ())
    assert [item.type for item in record.input_items] == ["message"]
    stored = json.loads(record.body)
    assert stored["status"] == "queued" and stored["background"] is True and "output" not in stored
    exchange.receive_saved()
    head, sent, finish = exchange.actions()
    assert isinstance(head, SendHead) and head.status == 200 and not head.streamed
    assert isinstance(sent, SendBody) and isinstance(finish, Finish) and finish.outcome == "queued"
    value = json.loads(sent.data)
    check_response(value)
    assert (value["id"], value["status"], value["output"], value["usage"]) == (record.id, "queued", [], None)


def test_with_stream_the_client_follows() -> None:
    exchange = ask(STREAM)
    action = queued(exchange)
    created, waiting = events_of(action.events)
    assert (created["type"], waiting["type"]) == ("response.created", "response.queued")
    assert (created["sequence_number"], waiting["sequence_number"]) == (0, 1)
    assert created["response"]["status"] == waiting["response"]["status"] == "queued"
    exchange.receive_saved()
    head, follow = exchange.actions()
    assert isinstance(head, SendHead) and head.streamed
    assert follow == FollowResponse("owner", action.record.id)
    assert exchange.state is State.FOLLOWING
    exchange.receive_followed()
    (finish,) = exchange.actions()
    assert isinstance(finish, Finish) and exchange.done


def test_a_client_that_leaves_before_its_head_is_written_follows_nothing() -> None:
    exchange = ask(STREAM)
    queued(exchange)
    exchange.receive_saved()
    assert isinstance(exchange.next_action(), SendHead)
    exchange.cancel(CancelReason.CLIENT_GONE)
    (finish,) = exchange.actions()
    assert isinstance(finish, Finish) and exchange.done


def test_a_client_that_leaves_leaves_the_response_alone() -> None:
    exchange = ask(STREAM)
    queued(exchange)
    exchange.receive_saved()
    exchange.actions()
    exchange.cancel(CancelReason.CLIENT_GONE)
    (finish,) = exchange.actions()
    assert isinstance(finish, Finish) and exchange.done
    exchange = ask(STREAM)
    queued(exchange)
    exchange.cancel(CancelReason.CLIENT_GONE)
    exchange.receive_saved()
    (finish,) = exchange.actions()
    assert isinstance(finish, Finish) and exchange.done


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(StoreError("disk"), 500, "storage_failed"), (TooManyJobs(3), 429, "rate_limit_exceeded")],
)
def test_what_cannot_be_stored_is_an_error(error: StoreError | TooManyJobs, status: int, code: str) -> None:
    exchange = ask(STREAM)
    queued(exchange)
    exchange.receive_saved(error)
    found = refused(exchange)
    assert (found["status"], found["code"]) == (status, code)


def test_wrong_requests_are_refused_at_once() -> None:
    for wrong, param in (
        ({"store": False}, "background"),
        ({"temperature": 9}, "temperature"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0]"),
        ({"tools": [{"type": "mcp"}]}, "tools[0].type"),
    ):
        found = refused(ask({**STREAM, **wrong}))
        assert (found["status"], found["param"]) == (400, param)
    exchange = ask({**ASK, "previous_response_id": "resp_1"})
    exchange.actions()
    exchange.receive_context(Context())
    assert refused(exchange)["code"] == "previous_response_not_found"


def test_credentials_of_clients_are_never_kept() -> None:
    bearer = (("authorization", "Bearer sk-secret"),)
    exchange = ask(ASK, bearer)
    (asked,) = exchange.actions()
    assert asked == LoadContext("owner", None, keyless="default")
    exchange.receive_context(Context(keyless=False))
    found = refused(exchange)
    assert (found["status"], found["param"], found["code"]) == (400, "background", "unsupported_parameter")
    assert "'background.client_credentials: seal'" in found["message"] and "sk-" not in found["message"]
    exchange = ask(ASK, bearer)
    exchange.actions()
    exchange.receive_context(Context(keyless=None))
    assert refused(exchange)["status"] == 503
    exchange = ask({**ASK, "conversation": "conv_a"}, bearer)
    exchange.actions()
    exchange.receive_context(Context(keyless=True))
    # Then everything goes on as usual.
    (loading,) = exchange.actions()
    assert isinstance(loading, LoadContext) and loading.conversation == "conv_a"
    exchange.receive_context(Context(conversation=()))
    job = msgspec.json.decode(queued(exchange).request, type=JobRequest)
    assert job.headers == [] and job.sealed == ""
    assert b"sk-secret" not in queued(ask(ASK, bearer, passthrough=False)).request
    own = (("x-team", "blue"), ("x-api-key", "sk-secret"), ("traceparent", "00-1"), ("cookie", "c"), ("accept", "a"))
    action = queued(ask(ASK, own, passthrough=False, upstream_headers=frozenset({"x-team"})))
    job = msgspec.json.decode(action.request, type=JobRequest)
    assert job.headers == [("x-team", "blue"), ("traceparent", "00-1")]
    found = refused(ask(ASK, own, passthrough=False, upstream_headers=frozenset({"x-api-key"})))
    assert found["param"] == "background" and "x-api-key" in found["message"] and "sk-" not in found["message"]


def test_credentials_that_are_sealed_go_with_the_job_and_nowhere_else() -> None:
    sealer = Sealer([b"k" * 32])
    sent = (("authorization", "Bearer sk-secret"), ("x-api-key", "sk-more"), ("x-team", "blue"))
    options: dict[str, Any] = {
        "sealer": sealer,
        "seal_credentials": True,
        "upstream_headers": frozenset({"x-api-key", "x-team"}),
    }
    exchange = ask(ASK, sent, **options)
    exchange.actions()
    exchange.receive_context(Context(keyless=False))
    action = queued(exchange)
    assert b"sk-" not in action.request and b"sk-" not in action.record.body
    job = msgspec.json.decode(action.request, type=JobRequest)
    assert job.headers == [("x-team", "blue")] and job.sealed
    again = make_exchange(**options)
    again.receive_job(job, "owner", action.record.id, -1)
    (call,) = again.actions()
    assert isinstance(call, CallUpstream) and set(sent) <= set(call.request.headers)
    # Another owner's, or another key's: the response fails, saying why.
    for owner, changed in (
        ("other", options),
        ("owner", {**options, "sealer": Sealer([b"x" * 32])}),
    ):
        lost = make_exchange(**changed)
        lost.receive_job(job, owner, action.record.id, -1)
        assert refused(lost)["code"] == "credentials_lost"


def test_a_file_is_fetched_before_anything_is_queued() -> None:
    """What is wrong with a request is told now, not by a response that fails later."""
    url = "https://files.example/a.txt"
    part = {"type": "input_file", "file_url": url}
    request = {**ASK, "input": [{"role": "user", "content": [part]}]}
    for file in (FetchedFile("a.txt", "text/plain", b"the text"), ApiError("It is gone.", status=400)):
        exchange = ask(request)
        assert exchange.actions() == [LoadContext("owner", None, (), (url,))]
        exchange.receive_context(Context(files={url: file}))
        if isinstance(file, ApiError):
            assert refused(exchange)["param"] == "input[0].content[0].file_url"
        else:
            # The worker fetches it again: the job holds the request as it came.
            assert b"the text" not in queued(exchange).request


def test_a_conversation_that_is_to_be_compacted_first_is_translated_by_the_worker() -> None:
    long = [{"role": "user", "content": "word " * 2000}, {"role": "user", "content": "Next?"}]
    soon = [{"type": "compaction", "compact_threshold": 1000}]
    sealer = Sealer([b"k" * 32])
    action = queued(ask({**ASK, "input": long, "context_management": soon}, sealer=sealer))
    assert [json.loads(item.body)["role"] for item in action.record.input_items] == ["user", "user"]
    worker = make_exchange(sealer=sealer)
    worker.receive_job(msgspec.json.decode(action.request, type=JobRequest), "owner", action.record.id, -1)
    (call,) = worker.actions()
    assert isinstance(call, CallUpstream) and b"summary" in call.request.body


@pytest.mark.parametrize(
    ("declared", "refuses"),
    [
        ({"connector_id": "connector_gmail"}, False),
        ({"server_url": "https://d.example", "headers": {}}, False),
        ({"server_url": "https://d.example", "authorization": "secret"}, True),
        ({"server_url": "https://d.example", "headers": {"x-key": "secret"}}, True),
        # It cannot be read, so nobody knows what it holds.
        ({"server_url": "https://d.example", "authorization": {"bearer": "secret"}}, True),
    ],
)
def test_mcp_servers_that_need_nothing_of_their_clients_can_be_queued(declared: dict[str, Any], refuses: bool) -> None:
    tools = [{"type": "file_search", "vector_store_ids": ["vs_1"]}, {"type": "mcp", "server_label": "d", **declared}]
    exchange = ask({**ASK, "tools": tools}, tool_types=frozenset({"mcp", "file_search"}))
    if refuses:
        error = refused(exchange)
        assert error["param"] == "background" and "'d'" in error["message"] and "secret" not in error["message"]
    else:
        assert b"server_label" in queued(exchange).request


# Running it again


def test_a_job_has_the_id_and_the_time_it_was_queued_with() -> None:
    items = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    action = queued(ask({**ASK, "input": items}))
    exchange = run_again(action, -1)
    (call,) = exchange.actions()
    assert isinstance(call, CallUpstream)
    exchange.receive_upstream_head(200, JSON)
    exchange.receive_upstream_data(b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}')
    exchange.receive_upstream_end()
    (save,) = exchange.actions()
    assert isinstance(save, SaveResponse)
    assert save.record.id == action.record.id and save.record.created_at == action.record.created_at
    assert json.loads(save.record.body)["background"] is True


def test_a_stream_goes_on_where_it_was() -> None:
    action = queued(ask(STREAM))
    exchange = run_again(action, count_events(action.events) - 1)
    call, head, first = exchange.actions()
    assert isinstance(call, CallUpstream) and isinstance(head, SendHead) and isinstance(first, SendBody)
    data = action.events + first.data
    exchange.receive_upstream_head(200, SSE)
    for piece in (*_ANSWER, _REST):
        exchange.receive_upstream_data(piece)
    exchange.receive_upstream_end()
    outcome = Outcome(head=head)
    pump(exchange, outcome)
    events = events_of((data + outcome.body).removesuffix(b"data: [DONE]\n\n"))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert events[2]["response"]["status"] == "in_progress"
    assert events[-1]["type"] == "response.completed"
    assert {event["response"]["id"] for event in events if "response" in event} == {action.record.id}


@pytest.mark.parametrize("request_", [ASK, STREAM])
def test_a_model_call_that_fails_is_a_failed_response(request_: dict[str, Any]) -> None:
    action = queued(ask(request_))
    exchange = run_again(action, count_events(action.events) - 1)
    outcome = Outcome()
    pump(exchange, outcome)
    exchange.receive_upstream_head(500, JSON)
    exchange.receive_upstream_end()
    pump(exchange, outcome)
    (record,) = outcome.records
    assert record.status == "failed" and json.loads(record.body)["error"]["code"] == "server_error"


def test_what_it_continues_is_loaded_again() -> None:
    exchange = ask({**ASK, "previous_response_id": "resp_1"})
    exchange.actions()
    exchange.receive_context(InvalidRequest("x"))
    assert refused(exchange)["message"] == "x"


def test_other_routes_keep_their_credentials() -> None:
    """Where the upstream has credentials of its own, the client's never go along anyway."""
    routes = ModelRoutes(ModelRoute(PROFILES["generic"], passthrough=False))
    action = queued(ask(ASK, (("authorization", "Bearer x"),), routes=routes))
    assert isinstance(action, Enqueue)
    loads = [a for a in run_again(action, -1).actions() if isinstance(a, LoadContext)]
    assert loads == []


@pytest.mark.parametrize(("never", "queues"), (("owner", False), ("*", False), ("another", True)))
def test_whose_responses_are_never_stored_cannot_queue_one(never: str, queues: bool) -> None:
    outcome = Outcome()
    exchange = ask(ASK, never_stored=frozenset({never}))
    if queues:
        assert queued(exchange).record.id
        return
    pump(exchange, outcome)
    assert outcome.head is not None and outcome.head.status == 400
    assert outcome.json["error"]["param"] == "background" and "'owner.store_never'" in outcome.json["error"]["message"]


def test_whose_responses_are_never_stored_gets_one_that_says_so() -> None:
    outcome = Outcome()
    exchange = ask({**ASK, "background": False, "store": True}, never_stored=frozenset({"owner"}))
    pump(exchange, outcome)
    assert outcome.calls and not exchange.known.stored
