"""What an exchange tells its observer, and what an observation makes of it."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
import structlog

from antiphon.config.upstreams import PriceSettings
from antiphon.engine.exchange.failure import Failure
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CallUpstream, CancelReason, RequestHead, RunTools, SendHead, Usage
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.quotas import Reservation
from antiphon.engine.ports.usage_sums import CallUsage
from antiphon.observability.metrics import Metrics
from antiphon.observability.observation import Observation, Telemetry
from antiphon.types.transport import LOCAL_REPLY, Headers, UpstreamError, UpstreamFault
from tests.support.exchanges import SSE, Outcome, make_exchange, pump
from tests.support.hosted_tools import ScriptedTools
from tests.support.metrics import value_of

_CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
_LAST = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n'
    b"data: [DONE]\n\n"
)
_CLIENTS = ("traceparent", "00-11111111111111111111111111111111-2222222222222222-01")
_OURS = ("traceparent", "00-11111111111111111111111111111111-3333333333333333-01")


class Told:
    """Keeps what it is told."""

    reservation: Reservation | None = None

    def __init__(self, headers: Headers = ()) -> None:
        self.headers = headers
        self.lines: list[tuple[object, ...]] = []

    def trace(self) -> Headers:
        return self.headers

    def call_began(self, upstream: str, operation: str, model: str, body: bytes) -> Headers:
        assert body
        self.lines.append(("began", upstream, operation, model))
        return self.headers

    def call_withdrawn(self) -> None:
        self.lines.append(("withdrawn",))

    def head_came(self, upstream: str, status: int) -> None:
        self.lines.append(("head", upstream, status))

    def first_data_came(self) -> None:
        self.lines.append(("first data",))

    def call_ended(self, fault: str = "") -> None:
        self.lines.append(("ended", fault))

    def call_used(self, usage: Usage, *, estimated: bool = False) -> None:
        self.lines.append(("estimated" if estimated else "used", usage.input_tokens, usage.output_tokens))

    def compacted(self) -> None:
        self.lines.append(("compacted",))

    def prompts_compared(self, result: str, reason: str) -> None:
        self.lines.append(("compared", result, reason))


def _asked(told: Told | Observation, headers: Headers = ()) -> tuple[ResponseExchange, CallUpstream]:
    exchange = make_exchange()
    exchange.observe(told)
    exchange.receive_request(
        RequestHead("POST", "/v1/responses", headers, "owner"),
        b'{"model":"m","input":"hi","stream":true,"store":false}',
    )
    (call,) = [action for action in exchange.actions() if isinstance(action, CallUpstream)]
    return exchange, call


def test_a_call_is_told_once_from_its_beginning_to_its_end() -> None:
    told = Told()
    exchange, _ = _asked(told)
    exchange.receive_upstream_head(200, SSE)
    for _ in range(3):
        exchange.receive_upstream_data(_CHUNK)
    exchange.receive_upstream_data(_LAST)
    assert told.lines[:3] == [("began", "default", "responses", "m"), ("head", "default", 200), ("first data",)]
    assert told.lines.count(("first data",)) == 1
    assert ("used", 5, 2) in told.lines
    assert told.lines[3] == ("ended", "")
    assert exchange.known.events > 5


def test_the_trace_goes_on_in_the_call_in_place_of_the_clients() -> None:
    _, call = _asked(Told((_OURS,)), (_CLIENTS, ("tracestate", "a=b")))
    assert _OURS in call.request.headers and _CLIENTS not in call.request.headers
    assert "tracestate" not in dict(call.request.headers)
    _, untraced = _asked(Told(), (_CLIENTS, ("tracestate", "a=b")))
    assert _CLIENTS in untraced.request.headers and ("tracestate", "a=b") in untraced.request.headers


def test_what_failed_says_how() -> None:
    told = Told()
    exchange, _ = _asked(told)
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.UNREACHABLE, "refused"))
    assert told.lines[1] == ("ended", "unreachable")


@pytest.mark.parametrize(("why", "fault"), [("connection_termination", "cut"), ("connection_refused", "unreachable")])
def test_envoys_own_answer_ends_the_call_with_a_fault(why: str, fault: str) -> None:
    told = Told()
    exchange, _ = _asked(told)
    why = f"unreachable:upstream_reset_before_response_started{{{why}}}"
    exchange.receive_upstream_head(502, ((LOCAL_REPLY, why),))
    assert told.lines[-2:] == [("head", "default", 0), ("ended", fault)]


def test_an_observation_counts_a_stream() -> None:
    metrics = Metrics()
    observed = Telemetry(metrics).observe("relay", "r1", Caller("owner"))
    exchange, _ = _asked(observed)
    assert value_of(metrics.render().decode(), "antiphon_responses_in_flight") == 1
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK)
    exchange.receive_upstream_data(_LAST)
    for _ in range(2):
        observed.end(exchange, "completed")
    text = metrics.render().decode()
    assert value_of(text, "antiphon_responses_in_flight") == 0
    assert value_of(text, "responses_total", outcome="completed", door="relay", fault="none") == 1
    assert value_of(text, "antiphon_response_failures_total") == 0
    assert (
        value_of(text, "antiphon_upstream_requests_total", upstream="default", operation="responses", status="200") == 1
    )
    assert value_of(text, "antiphon_upstream_head_seconds_count", upstream="default") == 1
    assert value_of(text, "antiphon_response_first_event_seconds_count", door="relay") == 1
    assert value_of(text, "antiphon_response_event_gap_seconds_count", door="relay") == 1
    for name in ("response_first_event", "response_event_gap", "upstream_head"):
        assert 0 < value_of(text, f"antiphon_{name}_seconds_sum") < 60, "it is a time between two moments"
    assert value_of(text, "antiphon_tokens_total", kind="input", model="m", upstream="default") == 5
    assert value_of(text, "antiphon_tokens_total", kind="output") == 2


def test_an_observation_says_whose_fault_it_was() -> None:
    metrics = Metrics()
    observed = Telemetry(metrics).observe("drive", "r1", Caller("owner"))
    exchange, _ = _asked(observed)
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.TIMED_OUT, "nothing came"))
    observed.end(exchange, "error")
    text = metrics.render().decode()
    assert value_of(text, "responses_total", outcome="error", door="drive", fault="upstream") == 1
    assert value_of(text, "antiphon_response_failures_total", fault="upstream", upstream="default") == 1
    assert value_of(text, "antiphon_upstream_requests_total", status="timed_out") == 1
    assert value_of(text, "antiphon_upstream_head_seconds_count") == 0


def test_a_client_that_leaves_is_no_failure_of_the_upstream() -> None:
    metrics = Metrics()
    observed = Telemetry(metrics).observe("drive", "r1", Caller("owner"))
    exchange, _ = _asked(observed)
    exchange.receive_upstream_head(200, SSE)
    exchange.cancel(CancelReason.CLIENT_GONE)
    observed.end(exchange, "cancelled")
    text = metrics.render().decode()
    assert value_of(text, "responses_total", outcome="cancelled", fault="cancelled") == 1
    assert value_of(text, "antiphon_upstream_requests_total", status="cancelled") == 1


def test_what_was_dropped_tells_nothing() -> None:
    metrics = Metrics()
    observed = Telemetry(metrics).observe("drive", "r1", Caller("owner"))
    observed.drop()
    observed.drop()
    text = metrics.render().decode()
    assert value_of(text, "antiphon_responses_in_flight") == 0 and value_of(text, "responses_total") == 0


def test_a_call_that_was_not_heard_to_its_end_is_estimated() -> None:
    told = Told()
    exchange, call = _asked(told)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK * 6)
    exchange.cancel(CancelReason.CLIENT_GONE)
    assert told.lines[-2:] == [("first data",), ("estimated", len(call.request.body) // 4, 12 // 4)]


_SO_FAR = (
    b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}],"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\n'
)


def test_a_response_that_is_broken_off_took_what_was_heard_of_it() -> None:
    told = Told()
    exchange, _ = _asked(told)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK + _SO_FAR)
    for _ in range(2):
        exchange.break_off()
    assert [line for line in told.lines if line[0] in ("used", "estimated")] == [("used", 5, 1)]


def test_what_has_ended_or_made_no_call_took_nothing_more() -> None:
    told = Told()
    exchange, _ = _asked(told)
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.UNREACHABLE, "refused"))
    exchange.break_off()
    unread = make_exchange()
    unread.observe(told)
    unread.break_off()
    assert not [line for line in told.lines if line[0] in ("used", "estimated")]


def test_a_call_that_nobody_answered_took_nothing() -> None:
    told = Told()
    exchange, _ = _asked(told)
    exchange.receive_upstream_head(500, SSE)
    exchange.receive_upstream_end()
    assert not [line for line in told.lines if line[0] in ("used", "estimated")]


@pytest.mark.parametrize("reason", [CancelReason.CLIENT_GONE, CancelReason.SHUTTING_DOWN])
def test_a_response_that_ends_while_its_tools_run_took_what_its_calls_did(reason: CancelReason) -> None:
    """Its one call is told once: it is over, and its end was heard."""
    told, tools, outcome = Told(), ScriptedTools(), Outcome()
    exchange = make_exchange(tool_types=tools.types)
    exchange.observe(told)
    exchange.receive_request(
        RequestHead("POST", "/v1/responses", (), "owner"),
        b'{"model":"m","input":"hi","stream":true,"tools":[{"type":"web_search"}]}',
    )
    pump(exchange, outcome, tools=tools)
    exchange.receive_upstream_head(200, SSE)
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "web_search", "arguments": "{}"}}
    delta = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}).encode()
    exchange.receive_upstream_data(b"data: %b\n\n" % delta + _LAST.replace(b'"stop"', b'"tool_calls"'))
    assert any(isinstance(action, RunTools) for action in exchange.actions())
    exchange.cancel(reason)
    pump(exchange, outcome, tools=tools)
    assert [line for line in told.lines if line[0] in ("used", "estimated")] == [("used", 5, 2)]
    assert outcome.records[0].usage == Usage(5, 2, 7)


def test_what_was_spent_is_noted_for_its_owner_at_its_price() -> None:
    spent: list[CallUsage] = []

    class Ledger:
        def note(self, one: CallUsage) -> None:
            spent.append(one)

    metrics = Metrics()
    price = PriceSettings(model="m", input=2, output=10)
    observed = Telemetry(metrics, None, Ledger(), lambda model: price if model == "m" else None).observe(
        "http", "r", Caller("o")
    )
    exchange, _ = _asked(observed)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK + _LAST)
    with structlog.testing.capture_logs() as lines:
        observed.end(exchange, "completed")
    assert spent == [CallUsage("o", "m", "default", Usage(5, 2, 7), False, 30)]
    assert value_of(metrics.render().decode(), "antiphon_cost_total", model="m") == 30 / 1e6
    assert lines[0]["cost"] == 30 / 1e6 and lines[0]["input_tokens"] == 5 and "estimated" not in lines[0]


def test_of_a_request_that_was_not_read_there_is_nothing_yet() -> None:
    fresh = make_exchange()
    assert (fresh.known.events, fresh.known.output_items) == (0, b"[]")


def test_the_items_that_are_done_can_be_told() -> None:
    exchange, _ = _asked(Told())
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK)
    assert exchange.known.output_items == b"[]"
    exchange.receive_upstream_data(_LAST)
    (item,) = json.loads(exchange.known.output_items)
    assert item["type"] == "message" and item["content"][0]["text"] == "hi"


def test_the_line_of_a_response_has_all_that_is_known_of_it() -> None:
    metrics = Metrics()
    price = PriceSettings(model="m", input=2, cached_input=1, output=10)
    observed = Telemetry(metrics, price_of=lambda _: price).observe(
        "http", "req_1", Caller("o" * 30, "o", "lab", "key_1"), (_CLIENTS,)
    )
    exchange, _ = _asked(observed)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_CHUNK + _LAST)
    observed.call_began("other", "responses", "m", b"{}")
    observed.call_used(Usage(4, 1, 5, cached_tokens=3, reasoning_tokens=1), estimated=True)
    with structlog.testing.capture_logs() as lines:
        observed.end(exchange, "incomplete", None, attempt=2)
        observed.end(exchange, "completed")
        observed.drop()
    (line,) = lines
    head_seconds, seconds = line.pop("head_seconds", 0.0), line.pop("seconds")
    assert 0 <= head_seconds < 60 and 0 < seconds < 60 and line.pop("timestamp") > 1e9
    assert line.pop("response_id").startswith("resp_")
    assert line == {
        "event": "response",
        "log_level": "info",
        "request_id": "req_1",
        "trace_id": "1" * 32,
        "door": "http",
        "model": "m",
        "outcome": "incomplete",
        "owner": "o" * 12,
        "key": "key_1",
        "team": "lab",
        "upstream": "other",
        "calls": 2,
        "estimated": True,
        "input_tokens": 9,
        "cached_tokens": 3,
        "output_tokens": 3,
        "reasoning_tokens": 1,
        "cost": (30 + 2 + 3 + 10) / 1e6,
        "attempt": 2,
    }
    assert value_of(metrics.render().decode(), "antiphon_responses_in_flight") == 0
    # The second call was under way still.
    assert value_of(metrics.render().decode(), "antiphon_upstream_requests_total", status="cancelled") == 1


def test_a_call_counts_once_by_its_status_or_why_it_has_none() -> None:
    metrics = Metrics()
    observed = Telemetry(metrics).observe("http", "req_1", Caller("owner"))
    for status, fault in ((404, ""), (200, "cut"), (0, "")):
        observed.call_began("a", "native", "m", b"{}")
        observed.head_came("a", status)
        for _ in range(2):
            observed.call_ended(fault)
    text = metrics.render().decode()
    for counted in ("404", "cut", "unreachable"):
        assert value_of(text, "antiphon_upstream_requests_total", status=counted, operation="native") == 1
    assert value_of(text, "antiphon_upstream_requests_total") == 3
    assert value_of(text, "antiphon_upstream_head_seconds_count") == 2
    observed.compacted()
    assert value_of(metrics.render().decode(), "antiphon_compactions_total") == 1
    observed.prompts_compared("cache_miss", "input_changed")
    told = {"type": "cache_miss", "reason": "input_changed"}
    assert value_of(metrics.render().decode(), "antiphon_prompt_comparisons_total", **told) == 1


@pytest.mark.parametrize(("upstream_status", "refused"), [(0, 1), (409, 0)])
def test_what_an_upstream_refuses_is_no_refusal_of_ours(upstream_status: int, refused: int) -> None:
    metrics = Metrics()
    failure = Failure("client", "in use", 409, "conversation_locked", upstream_status=upstream_status)
    Telemetry(metrics).observe("http", "req_1", Caller("owner")).end(make_exchange(), "error", failure)
    assert value_of(metrics.render().decode(), "antiphon_conversation_conflicts_total") == refused


@pytest.mark.parametrize(("parts", "gaps"), [(0, 0), (1, 1)])
def test_a_stream_without_events_has_no_time_between_them(parts: int, gaps: int) -> None:
    metrics = Metrics()
    observed = Telemetry(metrics).observe("relay", "r1", Caller("owner"))
    exchange, _ = _asked(observed)
    exchange.receive_upstream_head(200, SSE)
    if parts:
        exchange.receive_upstream_data(_CHUNK * parts)
    exchange.cancel(CancelReason.CLIENT_GONE)
    observed.end(exchange, "cancelled")
    text = metrics.render().decode()
    assert value_of(text, "antiphon_response_first_event_seconds_count") == parts
    assert value_of(text, "antiphon_response_event_gap_seconds_count") == gaps
    assert value_of(text, "responses_total", outcome="cancelled") == 1


def test_the_price_of_a_call_is_that_of_its_models_name() -> None:
    asked: list[str] = []

    def price_of(model: str) -> PriceSettings | None:
        asked.append(model)
        return PriceSettings(model="m", input=2, cached_input=1, output=10) if model == "m" else None

    telemetry = Telemetry(Metrics(), price_of=price_of)
    assert telemetry.cost("m", Usage(10, 3, 13, cached_tokens=4)) == 6 * 2 + 4 * 1 + 3 * 10
    assert telemetry.cost("x" * 300, Usage(10, 3, 13)) == 0 and asked[-1] == "x" * 256
    assert Telemetry(Metrics()).cost("m", Usage(10, 3, 13)) == 0


class _Reserved:
    """A reservation with headers."""

    caller = Caller("owner")
    by_model = False
    headers = (("x-ratelimit-limit-requests", "60"), ("x-ratelimit-remaining-requests", "59"))


def test_the_callers_quotas_replace_those_of_the_upstream() -> None:
    told = Told()
    told.reservation = cast(Any, _Reserved())
    exchange, _ = _asked(told)
    assert exchange.reservation is told.reservation
    upstream = (*SSE, ("x-ratelimit-limit-requests", "9"), ("x-ratelimit-reset-requests", "1s"), ("retry-after", "3"))
    exchange.receive_upstream_head(200, upstream)
    exchange.receive_upstream_data(_CHUNK)
    (head, *_) = exchange.actions()
    assert isinstance(head, SendHead)
    shown = {name: value for name, value in head.headers if "rate" in name or "retry" in name}
    assert shown == {**dict(_Reserved.headers), "retry-after": "3"}


def test_a_header_with_a_secret_does_not_reach_the_client() -> None:
    secret = "gsk_Zq9InjectedOperatorKey77abcd0123"
    exchange = make_exchange(secrets=(secret,))
    exchange.receive_request(
        RequestHead("POST", "/v1/responses", (), "owner"), b'{"model":"m","input":"hi","stream":true}'
    )
    exchange.actions()
    limits = (("x-ratelimit-reset-requests", "1m30.5s"), ("x-ratelimit-reset-at", "2026-11-28T00:00:00Z"))
    exchange.receive_upstream_head(200, (*SSE, ("x-ratelimit-k", f"of {secret.upper()}"), *limits))
    exchange.receive_upstream_data(_CHUNK)
    head = next(action for action in exchange.actions() if isinstance(action, SendHead))
    assert [pair for pair in head.headers if pair[0].startswith("x-ratelimit-")] == [*limits]


def test_owners_are_counted_only_if_the_settings_say_so() -> None:
    for counts in (False, True):
        metrics = Metrics()
        telemetry = Telemetry(
            metrics, price_of=lambda _: PriceSettings(model="*", input=1, output=2), counts_owners=counts
        )
        for caller in (Caller("n:anna", "anna"), Caller("b:hash")):
            observed = telemetry.observe("http", "r", caller)
            exchange, _ = _asked(observed)
            exchange.receive_upstream_head(200, SSE)
            exchange.receive_upstream_data(_CHUNK + _LAST)
            exchange.receive_upstream_end()
            observed.end(exchange, "completed")
        telemetry.endings.tell()
        for name, value in (("responses", 1.0), ("tokens", 7.0), ("cost", 9e-6)):
            text = metrics.render().decode()
            found = [value_of(text, f"antiphon_owner_{name}_total", owner=owner) for owner in ("anna", "b:hash")]
            assert found == ([value, value] if counts else [0.0, 0.0])


@pytest.mark.parametrize(
    ("outcome", "failed", "expected"), [("completed", False, "estimate"), ("error", True, "(0, 0)")]
)
def test_an_answer_without_usage_costs_its_estimate(outcome: str, failed: bool, expected: str) -> None:
    closed: list[str] = []

    class Reserved:
        caller = Caller("owner")
        by_model = False
        headers = ()

        def free_slots(self) -> None:
            closed.append("slots")

        def close_as_estimated(self, sent: int = 0) -> None:
            closed.append("estimate")

        def close(self, tokens: int, output: int, cost: int, *, queued: bool = False) -> None:
            closed.append(f"({tokens}, {cost})")

    observed = Telemetry(Metrics(), reserve=lambda _: cast(Any, Reserved())).observe("http", "r", Caller("owner"))
    exchange, _ = _asked(observed)
    failure = Failure("upstream", "it failed", code="upstream_error", operation="call_upstream") if failed else None
    observed.end(exchange, outcome, failure)
    assert closed == ["slots", expected]
