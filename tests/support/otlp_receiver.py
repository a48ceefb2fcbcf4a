"""A trace collector for tests: receives spans by OTLP over HTTP, and returns them as trees.

Lives here: receiving, decoding, and the tree of a trace. Not here: the expected traces.
"""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from tests.support.waiting import until


@dataclass(frozen=True)
class ReceivedSpan:
    """One received span. `error` is `error.type`, or the status message, of a failed span."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    attributes: dict[str, Any]
    links: tuple[str, ...]
    """The ids of the linked spans."""
    service: str
    failed: bool
    start: int
    end: int


@dataclass
class OtlpReceiver:
    """The collector. The collector answers every export with `status`, after `gate` is open. With `endless`, its
    answers have a body without end."""

    status: int = 200
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    spans: list[ReceivedSpan] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    endless: bool = False
    path: str = "/v1/traces"
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the sender stopped reading an endless body."""

    async def __aenter__(self) -> Self:
        self.gate.set()
        self._runner = web.ServerRunner(web.Server(self._take), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        await self._runner.cleanup()

    @property
    def exports(self) -> int:
        """The number of received exports."""
        return len(self.headers)

    def named(self, name: str) -> list[ReceivedSpan]:
        """The spans with this name, by start time."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start)

    async def has(self, name: str, count: int = 1) -> list[ReceivedSpan]:
        """Wait until `count` spans with this name have arrived."""
        await until(lambda: len(self.named(name)) >= count)
        return self.named(name)

    def tree(self, root: ReceivedSpan) -> Any:
        """The tree of a span: its name, or its name with the trees of its children, by start time."""
        inside = sorted((span for span in self.spans if span.parent_id == root.span_id), key=lambda span: span.start)
        return (root.name, [self.tree(span) for span in inside]) if inside else root.name

    async def _take(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.path == self.path and request.content_type == "application/x-protobuf", request.path
        body = await request.read()
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        await self.gate.wait()
        if self.endless:
            return await self._go_on(request)
        if self.status != 200:
            return web.Response(status=self.status)
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _attributes(resource.resource.attributes).get("service.name", "")
            self.spans += [_span(span, service) for scope in resource.scope_spans for span in scope.spans]
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")

    async def _go_on(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse(status=self.status)
        await answer.prepare(request)
        try:
            while True:
                await answer.write(bytes(1 << 16))
        except OSError:
            self.cut.set()
        return answer


def _span(span: OtlpSpan, service: str) -> ReceivedSpan:
    return ReceivedSpan(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        OtlpSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        _attributes(span.attributes),
        tuple(link.span_id.hex() for link in span.links),
        service,
        span.status.code == 2,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs if isinstance(pair, KeyValue)}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind is not None else None
