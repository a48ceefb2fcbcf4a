"""The journal's entry of each kind of request, and the list of the requests in flight."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw
from structlog.testing import capture_logs

from antiphon.config.operators import ConsoleSettings
from antiphon.config.upstreams import PriceSettings
from antiphon.engine.exchange.failure import Failure
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.exchange.recording_exchange import STOPPED, RecordingExchange
from antiphon.engine.ports.actions import CancelReason, RequestHead
from antiphon.engine.ports.callers import NO_CALLER, Caller
from antiphon.engine.ports.jobs import JobRequest
from antiphon.engine.ports.journal import REFUSED, Entry, JournalSpan
from antiphon.engine.ports.quotas import QuotaExceeded
from antiphon.engine.ports.state import StoredResponse
from antiphon.observability.metrics import Metrics
from antiphon.observability.observation import Observation, Telemetry
from antiphon.translation.profiles import PROFILES
from antiphon.types.transport import UpstreamError, UpstreamFault
from tests.support.exchanges import JSON, SSE, Outcome, exchange_options, make_exchange, pump
from tests.support.fixed import SequentialIds, fixed_clock
from tests.support.hosted_tools import ScriptedTools
from tests.support.journal import Noted, joined, recording_exchange
from tests.support.metrics import value_of

_CALLER = Caller("n:team-a", "team-a", "blue", "key_1")
_HEAD = RequestHead("POST", "/v1/responses", (), _CALLER.owner, "req_1")
_TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
_LAST = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,'
    b'"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":1}}}\n\n'
    b"data: [DONE]\n\n"
)


class Watched:
    """One observed request, with a journal."""

    def __init__(
        self, record: str = "off", *, unstored: bool = False, tools: ScriptedTools | None = None, **options: Any
    ) -> None:
        self.journal, self.outcome, self.tools = Noted(), Outcome(), tools
        console = ConsoleSettings.model_validate({"record": record, "record_unstored": unstored})
        price = PriceSettings(model="m", input=2, output=10)
        self.telemetry = Telemetry(Metrics(), price_of=lambda _: price, journal=self.journal, console=console)
        self.observed = self.telemetry.observe("http", "req_1", _CALLER)
        if tools is not None:
            options["tool_types"] = tools.types
        self.exchange = recording_exchange(console, exchange_options(**options), SequentialIds(), fixed_clock)
        self.observed.watch(self.exchange)

    def ask(self, path: str = "/v1/responses", **fields: Any) -> None:
        body = json.dumps({"model": "m", "input": "hello", **fields}).encode()
        self.exchange.receive_request(RequestHead("POST", path, (), _CALLER.owner, "req_1"), body)
        self.pump()

    def pump(self) -> None:
        pump(self.exchange, self.outcome, tools=self.tools)

    def answer(self, *data: bytes, status: int = 200, headers: Any = SSE) -> None:
        self.exchange.receive_upstream_head(status, headers)
        for one in data:
            self.exchange.receive_upstream_data(one)
        self.pump()
        if not self.exchange.done and len(self.outcome.calls) == 1:
            self.exchange.receive_upstream_end()
            self.pump()

    def end(self, outcome: str = "", failure: Failure | None = None, **known: object) -> Entry:
        finish = self.outcome.finish
        self.observed.end(self.exchange, outcome or (finish.outcome if finish is not None else ""), failure, **known)
        (entry,) = self.journal.entries
        return entry


def _kinds(entry: Entry) -> list[str]:
    return [span.kind for span in entry.detail.spans]


def _span(entry: Entry, kind: str) -> JournalSpan:
    return next(span for span in entry.detail.spans if span.kind == kind)


def test_the_entry_of_a_stream() -> None:
    one = Watched()
    one.ask(stream=True, previous_response_id=None, made_up=5)
    one.answer(_TEXT, _LAST)
    entry = one.end(status=200, path="/v1/responses")
    assert entry.id.startswith("entry_")
    assert (entry.request_id, entry.owner, entry.key_id, entry.key_name, entry.team) == (
        *("req_1", "n:team-a", "key_1", "team-a", "blue"),
    )
    assert (entry.door, entry.model, entry.upstream, entry.response_id) == ("http", "m", "default", "resp_1")
    assert (entry.outcome, entry.fault, entry.code, entry.status) == ("completed", "", "", 200)
    assert (entry.stored, entry.recorded, entry.calls, entry.cost) == (True, False, 1, 30)
    assert (entry.input_tokens, entry.cached_tokens, entry.output_tokens, entry.reasoning_tokens) == (5, 3, 2, 1)
    assert not entry.estimated and entry.first is not None and 0 <= entry.first <= entry.seconds
    detail = entry.detail
    assert (detail.message, detail.cause, detail.advice, detail.path, detail.stream) == (
        *("", "", "", "/v1/responses"),
        True,
    )
    assert detail.ignored == ("made_up",) and detail.events > 5 and detail.request_bytes > 40 and detail.output_bytes
    assert _kinds(entry) == ["call", "first_token", "save"]
    call, first = _span(entry, "call"), _span(entry, "first_token")
    assert call.name == "default" and call.facts["status"] == 200 and call.facts["operation"] == "responses"
    assert (call.facts["input_tokens"], call.facts["output_tokens"], call.facts["estimated"]) == (5, 2, False)
    assert 0 <= call.start <= first.end <= call.end and call.facts["head"] <= call.facts["first"]
    assert one.journal.recordings == [None]


@pytest.mark.parametrize("ending", ["refused", "repeated"])
def test_a_request_that_ends_before_its_model_call_counts_no_call(ending: str) -> None:
    one = Watched()
    one.exchange.receive_request(_HEAD, b'{"model":"m","input":"hello"}')
    (live,) = one.telemetry.live()
    assert (live.calls, live.upstream) == (1, "default")
    if ending == "refused":
        one.exchange.turn_away(QuotaExceeded("owner 'o'", "requests_per_minute", 1, 1, seconds=9.0))
    else:
        one.exchange.answer_again(StoredResponse("resp_9", "completed", b'{"id":"resp_9"}', ()))
    one.pump()
    with capture_logs() as lines:
        entry = one.end()
    assert (entry.calls, entry.upstream, _kinds(entry)) == (0, "", [])
    assert value_of(one.telemetry.metrics.render().decode(), "antiphon_upstream_requests_total") == 0
    (line,) = lines
    assert "upstream" not in line and line.get("operation") == ("read_request" if ending == "refused" else None)


def test_the_entry_of_a_response_with_a_tool() -> None:
    tools = ScriptedTools()
    one = Watched("all", tools=tools)
    one.ask(stream=True, tools=[{"type": "web_search"}])
    function = {"index": 0, "id": "c", "type": "function", "function": {"name": "web_search", "arguments": "{}"}}
    delta = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [function]}}]}).encode()
    one.answer(b"data: %b\n\n" % delta, _LAST.replace(b'"stop"', b'"tool_calls"'))
    one.answer(_TEXT, _LAST)
    entry = one.end()
    assert (entry.calls, entry.input_tokens, entry.recorded) == (2, 10, True)
    kinds = _kinds(entry)
    assert [kind for kind in kinds if kind != "first_token"] == ["load", "call", "tool", "call", "save"]
    assert [span.start for span in entry.detail.spans] == sorted(span.start for span in entry.detail.spans)
    assert _span(entry, "tool").name == "web_search" and _span(entry, "load").name == "tools"
    recording = one.journal.recorded
    assert [part.kind for part in recording.parts].count("call") == 2
    assert joined(recording, "event") == one.outcome.body and b"web_search_call" in one.outcome.body


def test_the_entry_of_a_failed_call_has_a_cause_and_an_advice() -> None:
    one = Watched("failures")
    one.ask(stream=False)
    one.exchange.receive_upstream_end(UpstreamError(UpstreamFault.UNREACHABLE, "refused"))
    one.pump()
    entry = one.end()
    assert (entry.outcome, entry.fault, entry.code, entry.status) == ("error", "upstream", "upstream_unreachable", 502)
    detail = entry.detail
    assert detail.message == json.loads(one.outcome.body)["error"]["message"]
    assert "refused" in detail.cause and "antiphon doctor" in detail.advice and detail.operation == "call_upstream"
    assert _span(entry, "call").facts["fault"] == "unreachable" and entry.recorded


@pytest.mark.parametrize("store", [True, False])
def test_an_upstreams_message_is_not_noted_for_a_request_that_is_not_stored(store: bool) -> None:
    one = Watched("failures")
    one.ask(store=store)
    one.answer(b'{"error":{"message":"you wrote: boo"}}', status=500, headers=JSON)
    entry = one.end()
    assert (entry.status, entry.detail.upstream_status, entry.recorded) == (500, 500, store)
    assert ("boo" in str(entry)) is store


def test_a_failed_stream_has_the_message_of_its_event() -> None:
    one = Watched()
    one.ask(stream=True)
    one.exchange.receive_upstream_head(200, SSE)
    one.exchange.receive_upstream_data(_TEXT)
    one.exchange.receive_upstream_end(UpstreamError(UpstreamFault.CUT, "gone"))
    one.pump()
    entry = one.end()
    assert (entry.outcome, entry.code, entry.status) == ("failed", "upstream_cut", 200)
    assert entry.detail.message and entry.detail.message.encode() in one.outcome.body and entry.estimated


def test_a_refused_request_has_its_cause() -> None:
    one = Watched("failures")
    one.exchange.receive_request(RequestHead("POST", "/v1/responses", (), _CALLER.owner, "req_1"), b"{")
    one.pump()
    entry = one.end()
    assert (entry.outcome, entry.fault, entry.status, entry.model) == ("error", "client", 400, "")
    assert "JSON" in entry.detail.message and entry.detail.cause and not entry.recorded
    unread = Watched()
    entry = unread.end("error", Failure("client", "The body is too large.", 413, "too_large"), path="/v1/responses")
    assert (entry.status, entry.detail.message, entry.detail.path) == (413, "The body is too large.", "/v1/responses")


def test_a_request_without_an_exchange_is_noted_and_floods_are_marked() -> None:
    journal = Noted()
    telemetry = Telemetry(Metrics(), journal=journal)
    wrong = Failure("client", "The header occurs twice.", 400, "duplicate_header", "read_request")
    telemetry.refused("http", "req_1", _CALLER, "/v1/responses", wrong, "Send it once.")
    (entry,) = journal.entries
    assert (entry.request_id, entry.owner, entry.status, entry.code, entry.outcome) == (
        *("req_1", "n:team-a", 400, "duplicate_header", "error"),
    )
    assert (entry.detail.message, entry.detail.cause) == ("Send it once.", "The header occurs twice.")
    telemetry.refused("http", "req_2", _CALLER, "/v1/files", wrong, "Send it once.")
    telemetry.refused("http", "req_3", _CALLER, "/v1/responses", Failure("client", "no key", 401), "No key.")
    telemetry.refused("http", "req_4", _CALLER, "/v1/responses", Failure("ours", "full", 503, counted=True), "Full.")
    assert {one.outcome for one in journal.entries[1:]} == {REFUSED} and len(journal.entries) == 4
    Telemetry(Metrics()).refused("http", "req_1", _CALLER, "/v1/responses", wrong, "Send it once.")


def test_no_key_of_a_path_is_in_the_entry_of_a_refused_request() -> None:
    journal, key = Noted(), "sk-abcdefghijklmnopqrstuvwx"
    unknown = Failure("client", f"Unknown request URL: GET /v1/{key}.", 404, "unknown_url")
    Telemetry(Metrics(), journal=journal).refused("http", "req_1", NO_CALLER, f"/v1/{key}", unknown, unknown.cause)
    assert journal.last.detail.path == "/v1/[redacted]" and key not in repr(journal.last)
    # The entry's path ends in the middle of this key.
    path = f"/v1/{'x' * 243}/{key}"
    Telemetry(Metrics(), journal=journal).refused("http", "req_1", NO_CALLER, path, unknown, unknown.cause)
    assert journal.last.detail.path.endswith("x/[redacte") and "sk-" not in repr(journal.last.detail.path)


def test_a_client_that_leaves() -> None:
    one = Watched()
    one.ask(stream=True)
    one.exchange.cancel(CancelReason.CLIENT_GONE)
    one.pump()
    entry = one.end("cancelled")
    assert (entry.outcome, entry.fault, entry.status) == ("cancelled", "cancelled", 499)
    assert _span(entry, "call").facts["fault"] == "cancelled"


def test_the_ids_of_a_conversation_and_of_the_previous_response() -> None:
    for fields, ids in (
        ({"previous_response_id": "resp_0"}, ("resp_0", "")),
        ({"conversation": "conv_1"}, ("", "conv_1")),
    ):
        one = Watched()
        one.ask(**fields)
        entry = one.end()
        assert (entry.previous_id, entry.conversation_id) == ids
        assert _span(entry, "load").name == "context" and entry.code.endswith("not_found")


def test_a_compaction_is_a_step() -> None:
    one = Watched()
    one.ask("/v1/responses/compact")
    one.answer(_TEXT, _LAST)
    entry = one.end()
    assert (entry.outcome, entry.detail.path) == ("completed", "/v1/responses/compact")
    assert _kinds(entry)[:2] == ["compaction", "call"] or _kinds(entry)[:2] == ["call", "compaction"]


def test_a_native_upstream_is_a_call() -> None:
    native = ModelRule("m", ModelRoute(PROFILES["generic"], upstream="other", mode="native"))
    one = Watched("all", unstored=True, routes=ModelRoutes(ModelRoute(PROFILES["generic"]), (native,)))
    one.ask()
    one.answer(b'{"id":"resp_9","usage":{"input_tokens":5,"output_tokens":2,"total_tokens":7}}', headers=JSON)
    entry = one.end()
    assert (entry.outcome, entry.upstream, entry.calls) == ("completed", "other", 1)
    assert _span(entry, "call").facts["operation"] == "native" and not entry.stored
    assert joined(one.journal.recorded, "data") == joined(one.journal.recorded, "event") == one.outcome.body


def test_a_background_job_has_an_entry_for_each_attempt() -> None:
    one = Watched()
    observed = one.telemetry.observe("background", "", Caller("n:team-a"), None)
    exchange = recording_exchange(ConsoleSettings(), exchange_options(), SequentialIds(), fixed_clock)
    observed.watch(exchange)
    job = JobRequest(Raw(b'{"model":"m","input":"x","background":true}'), [], 5.0, "req_9", "", ("team-a", "", "k"))
    observed.begin_job(job, (), 2)
    exchange.receive_job(job, "n:team-a", "resp_7", -1)
    (live,) = (live for live in one.telemetry.live() if live.door == "background")
    assert (live.door, live.response_id, live.state) == ("background", "resp_7", "calling")
    observed.call_retried(10, "connection refused")
    assert not one.telemetry.stop(live.id), "the store cancels a background response"
    observed.end(exchange, "completed", response_id="resp_7", attempt=2)
    entry = one.journal.last
    assert (entry.id, entry.response_id, entry.key_id) == (live.id, "resp_7", "k")
    assert (entry.request_id, entry.detail.attempt) == ("req_9", 2)
    call = _span(entry, "call").facts
    assert (call["attempts"], call["retry_cause"]) == (11, "connection refused")
    assert _span(entry, "queue").end == 0.0 and _span(entry, "queue").start < -1000
    lost = one.telemetry.observe("background", "", Caller("n:team-a"), None)
    lost.watch(one.exchange)
    lost.end(one.exchange, "failed", Failure("ours", "killed", code="server_error"), response_id="resp_8")
    assert one.journal.last.response_id == "resp_8"


def test_the_requests_in_flight_and_their_end_by_an_operator() -> None:
    one = Watched()
    unread = one.telemetry.observe("relay", "req_0", _CALLER)
    one.ask(stream=True)
    one.exchange.receive_upstream_head(200, SSE)
    one.exchange.receive_upstream_data(_TEXT * 4)
    (live,) = one.telemetry.live()
    assert (live.owner, live.key_name, live.model, live.upstream) == ("n:team-a", "team-a", "m", "default")
    assert (live.response_id, live.state, live.tokens, live.calls, live.stored) == ("resp_1", "streaming", 2, 1, True)
    assert live.age > 0 and live.first is not None
    assert not one.telemetry.stop(live.id, "n:team-b") and not one.telemetry.stop("req_1")
    assert one.telemetry.stop(live.id, "n:team-a")
    one.exchange.receive_time(5.0)
    one.pump()
    entry = one.end()
    assert (entry.code, entry.fault, entry.outcome) == (STOPPED, "cancelled", "failed")
    assert "operator" in entry.detail.message and "operator" in entry.detail.cause
    assert one.telemetry.live() == [] and not one.telemetry.stop(live.id)
    unread.drop()
    assert not one.telemetry.in_flight and len(one.journal.entries) == 1


def test_without_a_journal_nothing_is_kept() -> None:
    telemetry = Telemetry(Metrics())
    observed: Observation = telemetry.observe("http", "req_1", _CALLER)
    exchange = make_exchange()
    assert not isinstance(exchange, RecordingExchange)
    observed.watch(exchange)
    assert telemetry.live() == [] and not telemetry.stop("req_1")
    observed.end(exchange, "completed")
