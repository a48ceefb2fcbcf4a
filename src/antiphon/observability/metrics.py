"""Metrics in Prometheus' text format.

Lives here: the registry, names, labels and buckets. Not here: where they are served (`api/health.py`).

Invariants: labels come from closed sets (no model names, owners or paths), and a metric is touched once per response
or operation, never per chunk.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """One per process, with a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._responses = Counter(
            "responses_total", "Responses by outcome and door.", ("outcome", "door"), registry=self._registry
        )
        self._duration = Histogram(
            "response_duration_seconds",
            "From a request's first byte to the end of its response.",
            ("door",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._tools = Histogram(
            "tool_execution_duration_seconds",
            "Duration of hosted tool runs.",
            ("tool",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._storage = Counter(
            "storage_operations_total", "Store operations.", ("operation", "result"), registry=self._registry
        )
        self._storage_seconds = Histogram(
            "storage_operation_duration_seconds",
            "Duration of store operations.",
            ("operation",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._files = Counter("files_ingested_total", "Files by outcome.", ("outcome",), registry=self._registry)
        self._searches = Histogram(
            "search_duration_seconds",
            "Duration of searches in vector stores, by what they went by.",
            ("by",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge("responses_in_flight", "Responses being served.", registry=self._registry)
        self.sockets = Gauge("websocket_connections", "Open WebSocket connections.", registry=self._registry)
        # `labels` costs six times the increment; the label sets are few, so the children are kept.
        self._response = cache(self._responses.labels)
        self._door = cache(self._duration.labels)
        self._operation = cache(self._storage.labels)
        self._operation_seconds = cache(self._storage_seconds.labels)

    def response_finished(self, outcome: str, door: str, seconds: float) -> None:
        """One response ended; `door` is relay, drive, http, websocket or background."""
        self._response(outcome, door).inc()
        self._door(door).observe(seconds)

    def storage_operation(self, operation: str, result: str, seconds: float) -> None:
        """One store operation ended with `ok` or `error`."""
        self._operation(operation, result).inc()
        self._operation_seconds(operation).observe(seconds)

    def tool_execution(self, tool: str, seconds: float) -> None:
        """One hosted tool ran."""
        self._tools.labels(tool).observe(seconds)

    def file_ingested(self, outcome: str) -> None:
        """A file is over: `completed`, `failed`, or `retried` when it is given back."""
        self._files.labels(outcome).inc()

    def searched(self, by: str, seconds: float) -> None:
        """A search ended; it went by `words` alone or by `vectors` too."""
        self._searches.labels(by).observe(seconds)

    def render(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self._registry)
