"""Exports traces with OpenTelemetry's SDK, as OTLP over HTTP.

Only this module uses the SDK. `response_spans.py` and the users of `tracing.span` begin and end spans. `span_names.py`
defines the names of spans.

Invariants: a request never waits for a collector. A thread of the SDK sends the spans from a bounded queue. When the
queue is full, the SDK drops further spans. A collector that fails causes at most one log line per minute. The first
process of a trace decides about sampling, and the `traceparent` header contains that decision.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping

import requests
import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_SDK_DISABLED
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    SpanKind,
    Status,
    StatusCode,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace import Span as SdkSpan
from opentelemetry.trace import Tracer as SdkTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from antiphon.config.processes import TracingSettings
from antiphon.observability import span_names as names
from antiphon.observability.span_names import Kind, Value
from antiphon.types.transport import Headers, header_value

_CONTEXT = TraceContextTextMapPropagator()
_log = structlog.get_logger(__name__)
_ADVICE = (
    "check the collector at tracing.endpoint. The process still serves requests, but drops spans that do not fit "
    "its queue"
)
_QUIET_SECONDS = 60.0
_EXPORT_SECONDS = 5.0
_CAUSE_LENGTH = 500
_SENDERS = ("opentelemetry.exporter", "opentelemetry.sdk")
_QUEUE = 4096
_BATCH = 512
_LIMITS = SpanLimits(max_span_attributes=64, max_events=16, max_links=16, max_span_attribute_length=64 << 10)


class Tracer:
    """Creates the spans of one process. Tests pass a `processor`, which gets the spans instead of the collector."""

    def __init__(self, settings: TracingSettings, version: str, processor: SpanProcessor | None = None) -> None:
        self._content = settings.content
        resource = Resource.create({"service.name": settings.service_name, "service.version": version})
        # `tracing.enabled` has already read this variable. The SDK would read `OTEL_SDK_DISABLED` again and turn itself
        # off.
        os.environ.pop(OTEL_SDK_DISABLED, None)
        sampler = ParentBased(TraceIdRatioBased(settings.sample))
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False, span_limits=_LIMITS)
        self._provider.add_span_processor(processor or _sender(settings))
        self._tracer = self._provider.get_tracer("antiphon", version)
        library = logging.getLogger("opentelemetry")
        library.handlers, library.propagate = [_Complaints()], False

    def begin(self, name: str, kind: Kind, headers: Headers, *, linked: bool = False) -> Span | None:
        """Begin this process's first span for a request with these headers. Returns None when the request is not
        sampled. If `linked` is True, the headers come from the request that queued the work. The new span then also has
        a link to that request's span."""
        given = {field: value for field in _CONTEXT.fields if (value := header_value(headers, field)) is not None}
        context = _CONTEXT.extract(given)
        parent = get_current_span(context).get_span_context()
        links = [Link(parent)] if linked and parent.is_valid else []
        span = self._tracer.start_span(name, context, SpanKind[kind.upper()], links=links)
        return Span(self._tracer, span, content=self._content) if span.is_recording() else None

    def close(self) -> None:
        """Send the queued spans and stop. This method waits for the collector, so callers run it in a thread."""
        self._provider.shutdown()


class Span:
    """One sampled span."""

    __slots__ = ("_span", "_tracer", "content")

    def __init__(self, tracer: SdkTracer, span: SdkSpan, *, content: bool) -> None:
        self.content = content
        """Whether the span may contain messages, and arguments and results of tools."""
        self._tracer = tracer
        self._span = span

    @property
    def trace_id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    def child(self, name: str, kind: Kind, attributes: Mapping[str, Value]) -> Span:
        """Begin a child span."""
        context = set_span_in_context(self._span)
        span = self._tracer.start_span(name, context, SpanKind[kind.upper()], dict(attributes) if attributes else None)
        return Span(self._tracer, span, content=self.content)

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Set further attributes of the span."""
        self._span.set_attributes(dict(attributes))

    def headers(self) -> Headers:
        """Return the headers with which another process continues this span's trace."""
        carrier: dict[str, str] = {}
        _CONTEXT.inject(carrier, set_span_in_context(self._span))
        return tuple(carrier.items())

    def end(self, error: str = "", at: int = 0) -> None:
        """End the span, either now or at `at` (nanoseconds since the epoch). Later calls do nothing. `error` is the
        kind of failure."""
        if not self._span.is_recording():
            return
        if error:
            self._span.set_attribute(names.ERROR, error)
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(at or None)


class _Complaints(logging.Handler):
    """Limits the SDK's warnings about failed exports to one log line per minute."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._quiet_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(_SENDERS):
            # Other records concern a client's header (an invalid `tracestate`) and are not logged.
            return
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            _log.warning("traces_not_sent", cause=record.getMessage()[:_CAUSE_LENGTH], advice=_ADVICE)


class _CollectorSession(requests.Session):
    """An HTTP session for exports that does not read the collector's response body. The status of the response is
    sufficient, and the body may be endless."""

    def send(self, request: requests.PreparedRequest, **options: object) -> requests.Response:
        response = super().send(request, **{**options, "stream": True})
        if response.headers.get("content-length") == "0":
            # The session reads an empty body, so that the connection can be reused.
            response.raw.read()
        response.close()
        return response


def _sender(settings: TracingSettings) -> SpanProcessor:
    headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
    return BatchSpanProcessor(
        OTLPSpanExporter(
            endpoint=settings.traces_url, headers=headers, timeout=_EXPORT_SECONDS, session=_CollectorSession()
        ),
        max_queue_size=_QUEUE,
        schedule_delay_millis=1_000,
        max_export_batch_size=_BATCH,
        export_timeout_millis=_EXPORT_SECONDS * 1000,
    )
