"""Traces: what spans a response has, how they hang together, and what they say."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from msgspec import Raw
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from antiphon.config.processes import TracingSettings
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CallUpstream, CancelReason, Enqueue, LoadContext, RequestHead, Usage
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.jobs import JobRequest
from antiphon.errors import StoreError
from antiphon.observability.metrics import Metrics
from antiphon.observability.observation import Observation, Telemetry
from antiphon.observability.otel import Tracer
from antiphon.observability.tracing import read_parent, set_current, span, trace_headers
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault
from tests.support.exchanges import SSE, make_exchange

_TRACE, _SPAN = "1" * 32, "2" * 16
_SAMPLED = (("traceparent", f"00-{_TRACE}-{_SPAN}-01"), ("tracestate", "a=b"))
_UNSAMPLED = (("traceparent", f"00-{_TRACE}-{_SPAN}-00"),)
_ANSWER = (
    b'data: {"choices":[{"index":0,"delta":{"content":"secret answer"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,'
    b'"prompt_tokens_details":{"cached_tokens":3}}}\n\n'
    b"data: [DONE]\n\n"
)


@pytest.fixture(autouse=True)
def _no_span_left() -> Iterator[None]:
    yield
    set_current(None)


class Traced:
    """A process that traces, and the spans it has sent."""

    def __init__(self, **settings: Any) -> None:
        self._exporter = InMemorySpanExporter()
        tracing = TracingSettings.model_validate({"endpoint": "http://collector:4318", **settings})
        self.telemetry = Telemetry(Metrics(), Tracer(tracing, "1", SimpleSpanProcessor(self._exporter)))

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {each.name: each for each in self._exporter.get_finished_spans()}

    def ask(self, headers: Headers = (), **body: Any) -> tuple[Observation, ResponseExchange, CallUpstream]:
        observed = self.telemetry.observe("relay", "r1", Caller("owner"), headers)
        exchange = make_exchange()
        exchange.observe(observed)
        asked = {"model": "m", "input": "secret question", "stream": True, "store": False, **body}
        exchange.receive_request(RequestHead("POST", "/v1/responses", headers, "owner"), json.dumps(asked).encode())
        (call,) = [action for action in exchange.actions() if isinstance(action, CallUpstream)]
        return observed, exchange, call

    def answer(self, headers: Headers = ()) -> CallUpstream:
        observed, exchange, call = self.ask(headers)
        exchange.receive_upstream_head(200, SSE)
        exchange.receive_upstream_data(_ANSWER)
        observed.end(exchange, "completed")
        return call


def _parent(one: ReadableSpan) -> int:
    assert one.parent is not None
    return one.parent.span_id


def _id(one: ReadableSpan) -> int:
    context = one.get_span_context()
    assert context is not None
    return context.span_id


def test_a_model_call_is_a_span_within_the_requests_and_goes_on_at_the_upstream() -> None:
    traced = Traced()
    call = traced.answer(_SAMPLED)
    request, chat = traced.spans["POST /v1/responses"], traced.spans["chat m"]
    assert _parent(request) == int(_SPAN, 16) and _parent(chat) == _id(request)
    assert dict(call.request.headers)["traceparent"] == f"00-{_TRACE}-{_id(chat):016x}-01"
    assert dict(call.request.headers)["tracestate"] == "a=b"
    assert chat.kind.name == "CLIENT" and request.kind.name == "SERVER"
    told = dict(chat.attributes or {})
    assert told["gen_ai.operation.name"] == "chat" and told["gen_ai.request.model"] == "m"
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (5, 2)
    assert told["gen_ai.usage.cache_read.input_tokens"] == 3
    assert told["http.response.status_code"] == 200 and told["antiphon.upstream"] == "default"
    said = dict(request.attributes or {})
    assert said["antiphon.door"] == "relay" and said["antiphon.outcome"] == "completed"
    assert str(said["gen_ai.response.id"]).startswith("resp_") and said["antiphon.request.id"] == "r1"
    assert request.resource.attributes["service.name"] == "antiphon"


def test_attributes_of_the_resource_from_the_environment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=pod-7,service.name=not-this")
    traced = Traced()
    traced.answer()
    resource = next(iter(traced.spans.values())).resource
    assert resource.attributes["k8s.pod.name"] == "pod-7" and resource.attributes["service.name"] == "antiphon"
    assert resource.attributes["telemetry.sdk.language"] == "python"


def test_content_is_in_no_span_unless_it_is_asked_for() -> None:
    silent = Traced()
    silent.answer()
    assert "secret" not in "".join(each.to_json() for each in silent.spans.values())
    open_one = Traced(content=True)
    open_one.answer()
    asked = json.loads(str((open_one.spans["chat m"].attributes or {})["gen_ai.input.messages"]))
    answered = json.loads(str((open_one.spans["POST /v1/responses"].attributes or {})["gen_ai.output.messages"]))
    assert asked == [{"role": "user", "parts": [{"type": "text", "content": "secret question"}]}]
    assert answered == [{"role": "assistant", "parts": [{"type": "text", "content": "secret answer"}]}]


@pytest.mark.parametrize(
    ("sample", "headers", "spans"), [(1.0, (), 2), (0.0, (), 0), (0.0, _SAMPLED, 2), (1.0, _UNSAMPLED, 0)]
)
def test_who_began_the_trace_decides_whether_it_is_kept(sample: float, headers: Headers, spans: int) -> None:
    traced = Traced(sample=sample)
    call = traced.answer(headers)
    assert len(traced.spans) == spans
    if not spans:
        assert [pair for pair in call.request.headers if pair[0] == "traceparent"] == list(headers)


def test_a_failure_is_an_error_of_the_call_and_of_the_request() -> None:
    traced = Traced()
    observed, exchange, _ = traced.ask()
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.UNREACHABLE, "refused"))
    observed.end(exchange, "error")
    chat, request = traced.spans["chat m"], traced.spans["POST /v1/responses"]
    assert (chat.attributes or {})["error.type"] == "unreachable"
    assert (request.attributes or {})["antiphon.fault"] == "upstream" and not request.status.is_ok


def test_a_clients_mistake_is_no_error_of_the_gateways() -> None:
    traced = Traced()
    observed = traced.telemetry.observe("relay", "r1", Caller("owner"))
    exchange = make_exchange()
    exchange.observe(observed)
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), b"{")
    observed.end(exchange, "error")
    (request,) = traced.spans.values()
    assert (request.attributes or {})["antiphon.fault"] == "client" and request.status.is_ok


def test_a_client_that_leaves_ends_both_spans() -> None:
    traced = Traced()
    observed, exchange, _ = traced.ask()
    exchange.cancel(CancelReason.CLIENT_GONE)
    observed.end(exchange, "cancelled")
    assert set(traced.spans) == {"POST /v1/responses", "chat m"}


def test_what_was_dropped_ends_its_span() -> None:
    traced = Traced()
    traced.telemetry.observe("relay", "r1", Caller("owner")).drop()
    assert set(traced.spans) == {"POST /v1/responses"} and trace_headers() == ()


def test_runs_of_a_job_hang_on_the_request_that_left_it() -> None:
    traced = Traced()
    observed = traced.telemetry.observe("http", "r1", Caller("owner"))
    exchange = make_exchange()
    exchange.observe(observed)
    body = b'{"model":"m","input":"hi","background":true}'
    exchange.receive_request(RequestHead("POST", "/v1/responses", _SAMPLED, "owner"), body)
    (enqueue,) = [action for action in exchange.actions() if isinstance(action, Enqueue | LoadContext)]
    assert isinstance(enqueue, Enqueue)
    kept = tuple((name, value) for name, value in json.loads(enqueue.request)["headers"])
    observed.end(exchange, "queued")
    for attempt in range(2):
        run = traced.telemetry.observe("background", "", Caller("owner"), None)
        run.begin_job(JobRequest(Raw(body), [], 1.0, "r1"), kept, attempt + 1)
        run.end(make_exchange(), "completed", attempt=attempt)
    request, job = traced.spans["POST /v1/responses"], traced.spans["process background response"]
    assert _parent(job) == _id(request) and job.kind.name == "CONSUMER"
    assert [link.context.span_id for link in job.links] == [_id(request)]
    assert (job.attributes or {})["antiphon.attempt"] == 2


def test_a_span_around_a_block_is_within_the_current_one() -> None:
    traced = Traced()
    with span("nothing is traced") as none:
        assert none is None and trace_headers() == ()
    observed, exchange, _ = traced.ask()
    with span("outer", db__system__name="sqlite"):
        with span("inner", "client"):
            inner = dict(trace_headers())["traceparent"]
        with pytest.raises(KeyError), span("failing"):
            raise KeyError
    observed.end(exchange, "completed")
    spans = traced.spans
    assert _parent(spans["inner"]) == _id(spans["outer"])
    assert _parent(spans["outer"]) == _id(spans["POST /v1/responses"])
    assert (spans["outer"].attributes or {})["db.system.name"] == "sqlite"
    assert (spans["failing"].attributes or {})["error.type"] == "KeyError"
    assert f"{_id(spans['inner']):016x}" in inner
    assert trace_headers() == ()


@pytest.mark.parametrize(
    "value",
    [
        *("", "00", f"00-{_TRACE}-{_SPAN}", f"00-{'0' * 32}-{_SPAN}-01", f"00-{_TRACE}-{'0' * 16}-01"),
        *(
            f"ff-{_TRACE}-{_SPAN}-01",
            f"00-{_TRACE[1:]}-{_SPAN}-01",
            f"00-{_TRACE}-{_SPAN}-1",
            f"00-{'G' * 32}-{_SPAN}-01",
        ),
    ],
)
def test_a_broken_traceparent_is_none(value: str) -> None:
    assert read_parent((("traceparent", value),)) is None


def test_a_later_version_of_traceparent_is_read() -> None:
    assert read_parent((("traceparent", f"01-{_TRACE}-{_SPAN}-03-more"),)) == (_TRACE, _SPAN, True)


def test_a_models_name_is_cut_where_no_name_is_longer() -> None:
    traced = Traced()
    observed, exchange, _ = traced.ask(model="m" * 100_000)
    with structlog.testing.capture_logs() as logs:
        observed.end(exchange, "completed")
    assert max(len(name) for name in traced.spans) < 300
    assert all(len(str(one.attributes)) < 2000 for one in traced.spans.values())
    assert logs[0]["model"] == "m" * 256


def test_a_clients_broken_tracestate_is_no_fault_of_the_collectors() -> None:
    traced = Traced()
    with structlog.testing.capture_logs() as logs:
        traced.answer((_SAMPLED[0], ("tracestate", "secret,,=bad")))
        assert traced.spans and "secret" not in str(logs)
        logging.getLogger("opentelemetry.exporter.otlp").error("it is gone %s", "x" * 10_000)
    (complaint,) = [line for line in logs if line["event"] == "traces_not_sent"]
    assert complaint["cause"].startswith("it is gone") and len(complaint["cause"]) <= 500


@pytest.mark.parametrize("fails", [False, True])
def test_a_store_operation_is_a_span_of_its_trace(fails: bool) -> None:
    traced = Traced()
    observed, _, _ = traced.ask(_SAMPLED)
    with contextlib.suppress(StoreError), traced.telemetry.metrics.storage("save"):
        within = trace_headers()
        if fails:
            raise StoreError("no")
    assert trace_headers() != within, "it was the current one within the block alone"
    (made,) = traced.spans.values()
    assert made.name == "store save" and made.kind is SpanKind.CLIENT
    assert made.attributes is not None
    assert (made.attributes["db.system.name"], made.attributes["db.operation.name"]) == ("sqlite", "save")
    assert made.attributes.get("error.type") == ("StoreError" if fails else None)
    assert observed.trace()[0][1].split("-")[1] == f"{made.context.trace_id:032x}"


def test_a_conversation_with_tools_and_images_is_told_in_the_form_of_the_conventions() -> None:
    traced = Traced(content=True)
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    image = {"type": "input_image", "image_url": "https://pictures.example/a.png"}
    observed, exchange, _ = traced.ask(
        instructions="be kind",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "look"}, image]},
            call,
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        ],
        tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    )
    deltas = [
        {"reasoning_content": "hm"},
        {"content": "yes"},
        {"tool_calls": [{"index": 0, "id": "c2", "type": "function", "function": {"name": "f", "arguments": "[]"}}]},
    ]
    exchange.receive_upstream_head(200, SSE)
    for delta in deltas:
        exchange.receive_upstream_data(
            b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()
        )
    exchange.receive_upstream_data(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\n')
    exchange.receive_upstream_data(b"data: [DONE]\n\n")
    observed.end(exchange, "completed")
    asked = json.loads(str((traced.spans["chat m"].attributes or {})["gen_ai.input.messages"]))
    assert asked == [
        {"role": "system", "parts": [{"type": "text", "content": "be kind"}]},
        {"role": "user", "parts": [{"type": "text", "content": "look"}, {"type": "image_url"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "f", "arguments": "{}"}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "sunny"}]},
    ]
    answered = json.loads(str((traced.spans["POST /v1/responses"].attributes or {})["gen_ai.output.messages"]))
    (said,) = answered
    call_id = next(part["id"] for part in said["parts"] if part["type"] == "tool_call")
    assert said == {
        "role": "assistant",
        "parts": [
            {"type": "reasoning", "content": "hm"},
            {"type": "text", "content": "yes"},
            {"type": "tool_call", "id": call_id, "name": "f", "arguments": "[]"},
        ],
    }


def test_what_the_model_refuses_is_told_too() -> None:
    traced = Traced(content=True)
    observed, exchange, _ = traced.ask()
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(b'data: {"choices":[{"index":0,"delta":{"refusal":"no"}}]}\n\n')
    exchange.receive_upstream_data(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
    exchange.receive_upstream_data(b"data: [DONE]\n\n")
    observed.end(exchange, "completed")
    answered = json.loads(str((traced.spans["POST /v1/responses"].attributes or {})["gen_ai.output.messages"]))
    assert answered == [{"role": "assistant", "parts": [{"type": "text", "content": "no"}]}]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"messages":null}', b'{"messages":[1]}'])
def test_a_call_without_messages_has_none(body: bytes) -> None:
    traced = Traced(content=True)
    observed = traced.telemetry.observe("http", "r1", Caller("owner"))
    observed.call_began("default", "responses", "m", body)
    observed.drop()
    assert (traced.spans["chat m"].attributes or {})["gen_ai.input.messages"] == "[]"


def test_each_call_is_a_span_of_its_own_with_its_own_end() -> None:
    traced = Traced()
    observed = traced.telemetry.observe("websocket", "r1", Caller("owner"))
    observed.call_began("a", "responses", "first", b"{}")
    observed.head_came("b", 500)
    observed.first_data_came()
    observed.call_ended()
    observed.call_began("c", "responses", "second", b"{}")
    observed.head_came("c", 200)
    observed.call_ended("cut")
    observed.call_used(Usage(1, 2, 3, 4, 5, 6))
    observed.call_began("d", "responses", "third", b"{}")
    observed.head_came("d", 399)
    observed.call_ended()
    observed.end(make_exchange(), "completed")
    first, second, third = (
        dict(traced.spans[f"chat {name}"].attributes or {}) for name in ("first", "second", "third")
    )
    assert 0 <= float(str(first.pop("gen_ai.response.time_to_first_chunk"))) < 60
    common = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai_compatible"}
    assert first == common | {
        "gen_ai.request.model": "first",
        "antiphon.upstream": "b",
        "http.response.status_code": 500,
        "error.type": "500",
    }
    assert second == common | {
        "gen_ai.request.model": "second",
        "antiphon.upstream": "c",
        "http.response.status_code": 200,
        "error.type": "cut",
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.cache_write.input_tokens": 5,
        "gen_ai.usage.reasoning.output_tokens": 6,
    }
    assert third == common | {
        "gen_ai.request.model": "third",
        "antiphon.upstream": "d",
        "http.response.status_code": 399,
    }
    turn = traced.spans["response.create"]
    assert turn.kind is SpanKind.SERVER and trace_headers() == ()
    said = dict(turn.attributes or {})
    assert (said["http.route"], said["antiphon.door"]) == ("/v1/responses", "websocket")
    assert "http.request.method" not in said and said["gen_ai.request.stream"] is False


def test_a_request_says_what_it_is_and_how_it_failed() -> None:
    traced = Traced()
    observed, exchange, _ = traced.ask()
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.UNREACHABLE, "refused"))
    observed.end(exchange, "error")
    said = dict(traced.spans["POST /v1/responses"].attributes or {})
    assert str(said.pop("gen_ai.response.id")).startswith("resp_")
    assert said == {
        "http.request.method": "POST",
        "http.route": "/v1/responses",
        "http.response.status_code": 502,
        "antiphon.door": "relay",
        "antiphon.outcome": "error",
        "antiphon.request.id": "r1",
        "antiphon.fault": "upstream",
        "antiphon.error.code": "upstream_unreachable",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "error.type": "upstream_unreachable",
    }


@pytest.mark.parametrize("lengths", [(0, 0), (31, 16), (32, 15), (33, 16)])
def test_a_traceparent_has_ids_of_just_their_length(lengths: tuple[int, int]) -> None:
    trace, one = lengths
    assert read_parent((("traceparent", f"00-{'a' * trace}-{'b' * one}-01"),)) is None
    assert read_parent((("traceparent", f"00-{'a' * 32}-{'b' * 16}-02"),)) == ("a" * 32, "b" * 16, False)


def test_complaints_about_the_collector_are_a_line_and_then_silence() -> None:
    Traced()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            logging.getLogger("opentelemetry.sdk.trace.export").warning("%s", "y" * 600)
        logging.getLogger("opentelemetry.exporter").info("all is well")
    assert [(line["event"], line["cause"]) for line in logs] == [("traces_not_sent", "y" * 500)]


@pytest.mark.parametrize(
    ("headers", "sample", "trace"), [(_SAMPLED, 1.0, _TRACE), (_UNSAMPLED, 1.0, _TRACE), ((), 0.0, "")]
)
def test_the_line_names_the_trace_that_it_belongs_to(headers: Headers, sample: float, trace: str) -> None:
    traced = Traced(sample=sample)
    with structlog.testing.capture_logs() as logs:
        traced.answer(headers)
    assert logs[0].get("trace_id", "") == trace
    begun = Traced()
    with structlog.testing.capture_logs() as logs:
        begun.answer()
    context = begun.spans["chat m"].get_span_context()
    assert context is not None and logs[0]["trace_id"] == f"{context.trace_id:032x}"


@pytest.mark.parametrize("ends", ["dropped", "ended"])
def test_what_has_ended_is_no_ones_current_span(ends: str) -> None:
    traced = Traced()
    observed, exchange, _ = traced.ask()
    assert trace_headers()
    if ends == "dropped":
        observed.drop()
    else:
        observed.end(exchange, "completed")
    assert trace_headers() == () and set(traced.spans) == {"POST /v1/responses", "chat m"}


def test_a_second_end_changes_nothing() -> None:
    traced = Traced()
    observed, exchange, _ = traced.ask()
    observed.end(exchange, "completed")
    observed.end(exchange, "error")
    assert (traced.spans["POST /v1/responses"].attributes or {})["antiphon.outcome"] == "completed"


def test_a_call_whose_end_nobody_told_ends_with_its_request_and_without_an_error() -> None:
    traced = Traced()
    observed = traced.telemetry.observe("http", "r1", Caller("owner"))
    observed.call_began("a", "responses", "first", b"{}")
    observed.head_came("a", 503)
    observed.call_ended()
    for name in ("second", "third"):
        observed.call_began("a", "responses", name, b"{}")
    observed.drop()
    spans = traced.spans
    assert [("error.type" in (spans[f"chat {name}"].attributes or {})) for name in ("first", "second", "third")] == [
        *(True, False, False)
    ]
    for one in spans.values():
        assert one.start_time is not None and one.end_time is not None and one.start_time <= one.end_time


def test_a_request_that_is_refused_before_its_model_call_has_no_span_of_a_call() -> None:
    traced = Traced()
    observed = traced.telemetry.observe("http", "r1", Caller("owner"))
    observed.call_began("a", "responses", "m", b"{}")
    observed.call_withdrawn()
    observed.drop()
    assert set(traced.spans) == {"POST /v1/responses"}


@pytest.mark.parametrize(("ended", "status"), [(True, 200), (False, 500)])
def test_the_first_call_of_a_request_may_be_the_one_that_nobody_ended(ended: bool, status: int) -> None:
    traced = Traced()
    observed = traced.telemetry.observe("http", "r1", Caller("owner"))
    observed.call_began("a", "responses", "m", b"{}")
    observed.head_came("a", status)
    if ended:
        observed.call_ended()
    observed.drop()
    (one,) = [each for name, each in traced.spans.items() if name == "chat m"]
    assert one.start_time is not None and one.end_time is not None and one.start_time <= one.end_time
    assert "error.type" not in (one.attributes or {})
