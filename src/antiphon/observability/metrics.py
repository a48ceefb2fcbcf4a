"""Records metrics: one method for each kind of event.

This module also refreshes the gauges before a scrape. `metric_names.py` defines names, labels and buckets.
`metric_values.py` stores the numbers, and `exposition.py` renders the text. `api/router.py` and
`commands/metrics_listener.py` serve the text over HTTP. `supervisor/merged_metrics.py` merges the metrics of several
processes.

Invariant: a metric is updated once per response or operation, never per chunk. A scrape reads the current values of
some gauges (sizes, queue lengths), and waits at most `_REFRESH_SECONDS` for these values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

import structlog

from antiphon.engine.ports.actions import Usage
from antiphon.errors import StoreError
from antiphon.observability import metric_names as names
from antiphon.observability.metric_values import (
    BoundedLabelValues,
    LabelledCounter,
    LabelledHistogram,
    Reading,
    StorageOperation,
)
from antiphon.observability.repeated_failures import Outage

if TYPE_CHECKING:
    from antiphon.observability.exposition import Exposition

_REFRESH_SECONDS = 1.0
_Kept = TypeVar("_Kept", LabelledCounter, LabelledHistogram)
_log = structlog.get_logger(__name__)


class Metrics:
    """The metrics of one process. `database` is the name of the database in the spans of store operations."""

    def __init__(self, database: str = "sqlite") -> None:
        self._database = database
        self._kept: dict[str, LabelledCounter | LabelledHistogram] = {}
        self._refreshers: list[Callable[[], Awaitable[None]]] = []
        self._outage = Outage(_log, "metrics_not_fresh", "metrics_fresh_again")
        self._codes, self._models, self._tools_named = BoundedLabelValues(), BoundedLabelValues(), BoundedLabelValues()
        self._responses = self._keep(LabelledCounter(names.RESPONSES))
        self._failures = self._keep(LabelledCounter(names.FAILURES))
        self._duration = self._keep(LabelledHistogram(names.DURATION))
        self._first_event = self._keep(LabelledHistogram(names.FIRST_EVENT))
        self._event_gap = self._keep(LabelledHistogram(names.EVENT_GAP))
        self._tokens = self._keep(LabelledCounter(names.TOKENS))
        self._cost = self._keep(LabelledCounter(names.COST))
        self._owners = BoundedLabelValues()
        self._owner_responses = self._keep(LabelledCounter(names.OWNER_RESPONSES))
        self._owner_tokens = self._keep(LabelledCounter(names.OWNER_TOKENS))
        self._owner_cost = self._keep(LabelledCounter(names.OWNER_COST))
        self._requests = self._keep(LabelledCounter(names.REQUESTS))
        self._upstream_calls = self._keep(LabelledCounter(names.UPSTREAM_CALLS))
        self._upstream_head = self._keep(LabelledHistogram(names.UPSTREAM_HEAD))
        self._tools = self._keep(LabelledHistogram(names.TOOLS))
        self._tool_results = self._keep(LabelledCounter(names.TOOL_RESULTS))
        self._storage = self._keep(LabelledCounter(names.STORAGE))
        self._storage_seconds = self._keep(LabelledHistogram(names.STORAGE_SECONDS))
        self.files = self._keep(LabelledCounter(names.FILES))
        """The number of files whose indexing ended, by outcome: `completed`, `failed`, or `retried` when the file was
        released for another attempt."""
        self.searches = self._keep(LabelledHistogram(names.SEARCHES))
        """The duration of searches in seconds. The label is `words`, or `vectors` for a search by words and vectors."""
        self.refused = self._keep(LabelledCounter(names.REFUSED))
        """The number of requests refused for lack of capacity, by the setting that limits them."""
        self.quota_refusals = self._keep(LabelledCounter(names.QUOTA_REFUSALS))
        """The number of requests that exceeded a quota, by kind of subject, limit and result."""
        self.cut = self._keep(LabelledCounter(names.CUT))
        """The number of requests that were cut at the end of a drain, by kind."""
        for kind in names.CUT_KINDS:
            # The process ends after it has cut requests. A counter that appears only at that time would show no
            # increase in Prometheus.
            self.cut.add(kind, by=0)
        self.compactions = self._keep(LabelledCounter(names.COMPACTIONS))
        """The number of compactions of conversations."""
        self.prompt_comparisons = self._keep(LabelledCounter(names.PROMPT_COMPARISONS))
        """The number of comparisons of prompts, by result and reason."""
        self._refused_for = {
            "conversation_locked": self._keep(LabelledCounter(names.CONFLICTS)),
            "invalid_encrypted_content": self._keep(LabelledCounter(names.SEALS_REFUSED)),
        }
        self.attempts = self._keep(LabelledCounter(names.ATTEMPTS))
        """The number of runs of background responses that began. The label is `first` or `again`."""
        self.given_back = self._keep(LabelledCounter(names.GIVEN_BACK))
        """The number of runs of background responses that this process released for another worker."""
        self.lost = self._keep(LabelledCounter(names.LOST))
        """The number of runs of background responses whose lease another worker took over."""
        self.in_flight = self._keep(LabelledCounter(names.IN_FLIGHT))
        """The number of responses in flight."""
        self.lag = self._keep(LabelledHistogram(names.LAG))
        """The delay of the event loop in seconds."""
        self.writer_group = self._keep(LabelledHistogram(names.WRITER_GROUP))
        """The number of write operations in one transaction, by database."""
        self._read = {one.name: LabelledCounter(one) for one in names.METRICS if one.name not in self._kept}
        self._exposition: Exposition | None = None

    # Methods that record events.

    def response_finished(
        self, outcome: str, door: str, seconds: float, *, fault: str = "none", code: str = "", upstream: str = ""
    ) -> None:
        """Record the end of one response. `door` is relay, drive, http, websocket or background. A `fault` other than
        `none` means that the response failed."""
        self._responses.add(outcome, door, fault)
        self._duration.add(seconds, door)
        if fault != "none":
            self._failures.add(fault, self._codes.bounded(code), upstream)

    def streamed(self, door: str, first: float, gap: float | None) -> None:
        """Record a stream: the seconds until the upstream's first data, and the mean seconds between its events. `gap`
        is None for fewer than two events."""
        self._first_event.add(first, door)
        if gap is not None:
            self._event_gap.add(gap, door)

    def spent(self, model: str, upstream: str, usage: Usage, cost: float = 0.0, *, estimated: bool = False) -> None:
        """Record the tokens and the cost of a model call. If `estimated` is True, the upstream sent no token counts."""
        model = self._models.bounded(model)
        add = self._tokens.add
        if cost:
            self._cost.add(model, by=cost)
        if estimated:
            add("estimated_input", model, upstream, by=usage.input_tokens)
            add("estimated_output", model, upstream, by=usage.output_tokens)
            return
        add("input", model, upstream, by=usage.input_tokens)
        add("output", model, upstream, by=usage.output_tokens)
        if usage.cached_tokens:
            add("cached_input", model, upstream, by=usage.cached_tokens)
        if usage.reasoning_tokens:
            add("reasoning", model, upstream, by=usage.reasoning_tokens)

    def owner_served(self, owner: str, tokens: int, cost: float) -> None:
        """Record a finished response of this owner, with the tokens and the cost of its model calls."""
        owner = self._owners.bounded(owner)
        self._owner_responses.add(owner)
        if tokens:
            self._owner_tokens.add(owner, by=tokens)
        if cost:
            self._owner_cost.add(owner, by=cost)

    def request_finished(self, operation: str, status: int, fault: str = "none") -> None:
        """Record a request that creates no response, or that was refused before its response was created."""
        self._requests.add(operation, str(status), fault)

    def upstream_called(self, upstream: str, operation: str, status: str, head_seconds: float | None) -> None:
        """Record the end of a call to an upstream. `status` is the HTTP status, or the failure if no status arrived."""
        self._upstream_calls.add(upstream, operation, status)
        if head_seconds is not None:
            self._upstream_head.add(head_seconds, upstream)

    def refused_for(self, code: str) -> None:
        """Record a refusal with this error code. Only some codes have a counter."""
        if code in self._refused_for:
            self._refused_for[code].add()

    def storage(self, operation: str) -> AbstractContextManager[None]:
        """Return a context manager for one store operation. The context manager records the duration and the result,
        and makes a span in the current trace. The result is `error` when the operation raises `StoreError`. The context
        manager does not count a cancelled operation, because the operation's outcome is unknown."""
        return StorageOperation(operation, self._database, self._storage, self._storage_seconds)

    def tool_execution(self, tool: str, seconds: float, result: str = "ok") -> None:
        """Record one run of a hosted tool. `result` is ok, failed, timed_out or cancelled."""
        tool = self._tools_named.bounded(tool)
        self._tools.add(seconds, tool)
        self._tool_results.add(tool, result)

    # Methods for the values that a scrape reads.

    def read(self, one: names.MetricDefinition, source: Callable[[], Reading]) -> None:
        """Register a function that returns this gauge's value at every scrape. If a gauge has several functions, its
        value is the sum of their results."""
        self._read[one.name].sources.append(source)

    def unfed(self) -> frozenset[str]:
        """Return the names of the gauges without a registered source."""
        return frozenset(name for name, read in self._read.items() if not read.sources)

    def before_scrape(self, refresh: Callable[[], Awaitable[None]]) -> None:
        """Register a coroutine function that each scrape awaits before it reads the gauges."""
        self._refreshers.append(refresh)

    async def scraped(self) -> bytes:
        """Return all metrics as text. The functions of `before_scrape` run first, but the scrape waits at most
        `_REFRESH_SECONDS` for these functions."""
        if self._refreshers:
            try:
                async with asyncio.timeout(_REFRESH_SECONDS):
                    ended = await asyncio.gather(*(refresh() for refresh in self._refreshers), return_exceptions=True)
            except TimeoutError:
                ended = [StoreError(f"the values of the gauges were not read within {_REFRESH_SECONDS:g} s")]
            failed = [error for error in ended if error is not None]
            if failed:
                self._outage.failed(cause=str(failed[0]) or type(failed[0]).__name__)
            else:
                self._outage.recovered()
        if self._exposition is None:
            self._exposition = await asyncio.to_thread(self._expose)
        return self.render()

    def render(self) -> bytes:
        """Return all metrics as text, without calling the functions of `before_scrape`."""
        if self._exposition is None:
            self._exposition = self._expose()
        return self._exposition.render()

    @staticmethod
    def content_type() -> str:
        """Return the content type of the text."""
        from antiphon.observability.exposition import CONTENT_TYPE

        return CONTENT_TYPE

    def _expose(self) -> Exposition:
        # The first scrape imports this module in a thread, because the import is slow.
        from antiphon.observability.exposition import Exposition

        # The metrics have the order of the documentation.
        kept = {**self._kept, **self._read}
        return Exposition([kept[one.name] for one in names.METRICS])

    def _keep(self, one: _Kept) -> _Kept:
        self._kept[one.definition.name] = one
        return one
