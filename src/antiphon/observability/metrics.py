"""Metrics in Prometheus' text format.

Lives here: the registry, names, labels and their values, and buckets; `docs/metrics.md` is made of them. Not here:
where they are served (`api/health.py`), and adding up those of several processes (`commands/merged_metrics.py`).

Invariants: labels come from closed sets (no model names, owners or paths), and a metric is touched once per response
or operation, never per chunk.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from antiphon.errors import StoreError

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BOUNDS = (
    "`limits.concurrent_requests`, `limits.bytes_in_flight`, and of one owner `limits.owner_requests`, "
    "`limits.owner_bytes_in_flight`"
)
_OUTCOMES = (
    "`completed`, `incomplete`, `failed`, `cancelled`; `error`: an HTTP error; `queued`: now in the background; `cut`: "
    "an answer of somebody else's that broke off; `given_back`: another process goes on with it"
)
_DOORS = "`relay`, `drive`, `http`, `websocket`, `background`"
_RESULTS = "`ok`, `error`"
_OPERATIONS = (
    "`save`, `enqueue`, `load_chain`, `load_conversation`, `load_prompt`, `get`, `list`, `input_items`, `delete`, "
    "`cancel`, `save_file`, `get_file`, `open_file`, `list_files`, `delete_file`"
)


@dataclass(frozen=True, slots=True)
class Described:
    """A metric as its reader sees it. `labels`: what values each has."""

    name: str
    kind: str
    text: str
    labels: Mapping[str, str]


RESTARTS = Described(
    "process_restarts_total",
    "counter",
    "Processes of antiphon up that were started again.",
    {"process": "its name: `envoy`, `sidecar 0`, `http door 0`, …", "cause": "`died`, `hung`"},
)
"""Told by `antiphon up` itself, in `commands/up.py`."""


class Metrics:
    """One per process, with a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.described: list[Described] = []
        """All there are, in the order they were made."""
        doors, results = {"door": _DOORS}, {"result": _RESULTS}
        self._responses = self._counter(
            "responses_total", "Responses by outcome and door.", {"outcome": _OUTCOMES} | doors
        )
        self._duration = self._histogram(
            "response_duration_seconds", "From a request's first byte to the end of its response.", doors
        )
        self._tools = self._histogram(
            "tool_execution_duration_seconds", "Duration of hosted tool runs.", {"tool": "the tool's type"}
        )
        operations = {"operation": _OPERATIONS}
        self._storage = self._counter("storage_operations_total", "Store operations.", operations | results)
        self._storage_seconds = self._histogram(
            "storage_operation_duration_seconds", "Duration of store operations.", operations
        )
        self._files = self._counter(
            "files_ingested_total",
            "Files of vector stores by outcome.",
            {"outcome": "`completed`, `failed`, `retried`: given back to be tried again"},
        )
        self._searches = self._histogram(
            "search_duration_seconds",
            "Duration of searches in vector stores, by what they went by.",
            {"by": "`words`, `vectors`: by both"},
        )
        self._refused = self._counter(
            "requests_refused_total",
            "Requests, and turns of background responses, that found no room, by the setting that bounds it.",
            {"setting": _BOUNDS},
        )
        self.in_flight = self._gauge("responses_in_flight", "Responses being served.")
        self.sockets = self._gauge("websocket_connections", "Open WebSocket connections.")
        # `labels` costs six times the increment; the label sets are few, so the children are kept.
        self._response = cache(self._responses.labels)
        self._door = cache(self._duration.labels)
        self._operation = cache(self._storage.labels)
        self._operation_seconds = cache(self._storage_seconds.labels)

    def response_finished(self, outcome: str, door: str, seconds: float) -> None:
        """One response ended; `door` is relay, drive, http, websocket or background."""
        self._response(outcome, door).inc()
        self._door(door).observe(seconds)

    def refused(self, setting: str) -> None:
        """There was no room, by this setting."""
        self._refused.labels(setting).inc()

    @contextmanager
    def storage(self, operation: str) -> Iterator[None]:
        """Around one store operation: it ends with `error` when it raises `StoreError`."""
        started = time.perf_counter()
        result = "ok"
        try:
            yield
        except StoreError:
            result = "error"
            raise
        finally:
            self.storage_operation(operation, result, time.perf_counter() - started)

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

    # Making them

    def _counter(self, name: str, text: str, labels: Mapping[str, str] | None = None) -> Counter:
        return Counter(name, text, self._note("counter", name, text, labels), registry=self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, self._note("gauge", name, text, None), registry=self._registry)

    def _histogram(self, name: str, text: str, labels: Mapping[str, str]) -> Histogram:
        names = self._note("histogram", name, text, labels)
        return Histogram(name, text, names, buckets=_SECONDS, registry=self._registry)

    def _note(self, kind: str, name: str, text: str, labels: Mapping[str, str] | None) -> Sequence[str]:
        self.described.append(Described(name, kind, text, labels or {}))
        return tuple(labels or ())
