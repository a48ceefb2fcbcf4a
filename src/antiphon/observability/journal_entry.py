"""Builds the journal's entry of one request from the facts that an `Observation` collects.

This module turns the steps of a request into spans, and fills the fields of the entry. The console lists requests from
the journal. Not here: the begin and the end of a request (`observation.py`), storing entries
(`engine/running/journal.py`), the recorded contents of requests (`engine/exchange/recording_exchange.py`).

Invariant: an entry contains no part of the request's input or the model's output, but has the same error messages as
the log line. An `Observation` has a `Trail` only if the process has a journal.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from antiphon.engine.exchange.failure import Failure
from antiphon.engine.exchange.recording_exchange import RecordingExchange
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import Usage
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.jobs import JobRequest
from antiphon.engine.ports.journal import Detail, Entry, JournalSpan, LiveRequest, Recording
from antiphon.ids import new_id
from antiphon.observability.metric_values import NAME_LENGTH
from antiphon.observability.outcome import advice_for
from antiphon.redaction import KEYS

_MOST_CALLS: Final = 200
_TEXT_LENGTH: Final = 2000
_CAUSE_LENGTH: Final = 300
_ID_LENGTH: Final = 256
_CLIENT_GONE: Final = 499


class _Call:
    """One model call. Times are on the process's monotonic clock. `head` (the response head) and `first` (the first
    bytes of the body) are seconds after `began`. `retries` counts the failed attempts before the last attempt."""

    __slots__ = (
        *("began", "ended", "estimated", "fault", "first", "head", "operation", "retries", "retry_cause", "status"),
        *("upstream", "usage"),
    )

    def __init__(self, upstream: str, operation: str) -> None:
        self.began = time.perf_counter()
        self.ended: float | None = None
        self.upstream = upstream
        self.operation = operation
        self.status = 0
        self.fault = ""
        self.head: float | None = None
        self.first: float | None = None
        self.usage: Usage | None = None
        self.estimated = False
        self.retries = 0
        self.retry_cause = ""


class Trail:
    """Collects the steps of one request. The methods for model calls correspond to those of `Observer`."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._compactions: list[tuple[_Call, float]] = []
        self._queued = 0.0
        self.attempt = 0
        """The number of the attempt of a background job, or 0."""
        self.entry_id = new_id("entry")
        """The id of the request's entry. A client may choose its request id, so the request id cannot name the
        entry."""
        # The exchange at the end of the request.
        self._exchange: ResponseExchange | None = None
        self._trace_id = ""
        self._ids = ("", "", "")
        self.named_model = ""
        """The model that the request names, also if Antiphon refused the request."""
        self.retries = 0
        """The number of failed attempts of the current model call."""
        self.retry_cause = ""
        """The cause of the last failed attempt."""
        self._stored = False

    def begin_job(self, queued: float, attempt: int) -> None:
        """Record the seconds that a background job waited in the queue, and the number of its attempt."""
        self._queued, self.attempt = max(0.0, queued), attempt

    def call_retried(self, failures: int, cause: str) -> None:
        """Record that the upstream is unreachable, and that the worker retries the current model call."""
        self.retries, self.retry_cause = failures, cause[:_TEXT_LENGTH]
        if self._calls:
            self._calls[-1].retries, self._calls[-1].retry_cause = failures, cause[:_CAUSE_LENGTH]

    def call_began(self, upstream: str, operation: str) -> None:
        self.retries, self.retry_cause = 0, ""
        if len(self._calls) < _MOST_CALLS:
            self._calls.append(_Call(upstream, operation))

    def call_withdrawn(self) -> None:
        self._calls.pop()

    def head_came(self, upstream: str, status: int) -> None:
        if self._calls:
            call = self._calls[-1]
            call.upstream, call.status = upstream, status
            call.head = time.perf_counter() - call.began

    def first_data_came(self) -> None:
        if self._calls:
            self._calls[-1].first = time.perf_counter() - self._calls[-1].began

    def call_ended(self, fault: str) -> None:
        if self._calls and self._calls[-1].ended is None:
            self._calls[-1].ended, self._calls[-1].fault = time.perf_counter(), fault

    def call_used(self, usage: Usage, estimated: bool) -> None:
        if self._calls:
            self._calls[-1].usage, self._calls[-1].estimated = usage, estimated

    def compacted(self) -> None:
        if self._calls:
            self._compactions.append((self._calls[-1], time.perf_counter()))

    def end(self, exchange: ResponseExchange, trace_id: str) -> None:
        """Record the facts of the exchange, because the request has ended."""
        known = exchange.known
        self._exchange, self._trace_id = exchange, trace_id
        self._ids = (known.response_id, known.previous_id[:_ID_LENGTH], known.conversation_id[:_ID_LENGTH])
        self._stored = known.stored
        self.named_model = known.named_model[:NAME_LENGTH]

    def detail(self, started: float, failure: Failure | None, path: str) -> Detail:
        """Return the facts that the console shows only on the page of this request, not in its list of requests.
        `started` is the time of the request's start. `path` is the path of a request whose body could not be read."""
        exchange = self._exchange
        if exchange is None:
            detail = Detail(spans=self._spans(started), path=path, attempt=self.attempt)
            return detail if failure is None else replace(detail, **_facts_of(failure, "", True))
        known = exchange.known
        recording = exchange if isinstance(exchange, RecordingExchange) else None
        detail = Detail(
            spans=self._spans(started),
            ignored=recording.ignored if recording is not None else tuple(known.left_out),
            request_bytes=exchange.request_bytes,
            output_bytes=known.output_bytes,
            events=known.events,
            fallback=known.fallback,
            trace_id=self._trace_id,
            path=(recording.path if recording is not None else "") or path,
            stream=known.streaming,
            attempt=self.attempt,
        )
        if failure is None:
            return detail
        error = known.builder.response.error if known.builder is not None else None
        message = known.message or (error.message if error is not None else "")
        return replace(detail, **_facts_of(failure, message, known.quoted))

    def _spans(self, started: float) -> tuple[JournalSpan, ...]:
        spans = []
        if self._queued:
            spans.append(JournalSpan("queue", "", -self._queued, 0.0))
        for call in self._calls:
            begin = call.began - started
            end = (call.ended if call.ended is not None else call.began) - started
            facts: dict[str, object] = {"operation": call.operation} if call.operation else {}
            facts["status"] = call.status
            if call.fault:
                facts["fault"] = call.fault
            if call.retries:
                facts["attempts"], facts["retry_cause"] = call.retries + 1, call.retry_cause
            if call.head is not None:
                facts["head"] = call.head
            if call.first is not None:
                facts["first"] = call.first
            if call.usage is not None:
                facts["input_tokens"] = call.usage.input_tokens
                facts["output_tokens"] = call.usage.output_tokens
                facts["estimated"] = call.estimated
            spans.append(JournalSpan("call", call.upstream, begin, end, facts))
            if call.first is not None:
                spans.append(JournalSpan("first_token", call.upstream, begin, begin + call.first))
        for call, at in self._compactions:
            spans.append(JournalSpan("compaction", "", call.began - started, at - started))
        for step in self._exchange.steps if isinstance(self._exchange, RecordingExchange) else ():
            failed = {"error": step.error} if step.error else {}
            spans.append(JournalSpan(step.kind, step.name, step.began - started, step.ended - started, failed))
        if len(spans) > 2:
            # Among steps that begin at the same time, the longest step comes first.
            spans.sort(key=_order)
        return tuple(spans)

    def recording(self, started: float, mode: str, *, failed: bool, unstored: bool) -> Recording | None:
        """The request's recorded contents, or None if the settings do not record this request. `mode` is the value of
        the setting `console.record`, and `unstored` is that of `console.record_unstored`."""
        exchange = self._exchange
        wanted = mode == "all" or (mode == "failures" and failed)
        if not wanted or not isinstance(exchange, RecordingExchange):
            return None
        if exchange.parts is None or not (self._stored or unstored):
            return None
        return exchange.parts.whole(started)

    @property
    def ids(self) -> tuple[str, str, str]:
        """The ids of the response, of the previous response, and of the conversation."""
        return self._ids

    @property
    def stored(self) -> bool:
        """Whether the request stores its response."""
        return self._stored


def _facts_of(failure: Failure, message: str, quoted: bool) -> dict[str, Any]:
    """The facts of a failure. `message` is the error message that the client got. `quoted`: whether the entry may have
    an upstream's message, which may quote the request."""
    if not message and failure.fault == "client":
        # The server refused the request before the exchange existed. The message for the client was the cause.
        message = failure.cause
    if failure.upstream_status and not quoted:
        # The client asked not to store the request.
        message = ""
    return {
        "message": message[:_TEXT_LENGTH],
        "cause": failure.cause[:_TEXT_LENGTH],
        "advice": advice_for(failure),
        "upstream_status": failure.upstream_status,
        "operation": failure.operation,
    }


def _order(span: JournalSpan) -> tuple[float, float]:
    return span.start, -span.end


def live_request(
    exchange: ResponseExchange,
    caller: Caller,
    trail: Trail,
    door: str,
    upstream: str,
    age: float,
    first: float | None,
    calls: int,
) -> LiveRequest:
    """The values of a request in the list of requests in flight. For the other parameters, see `LiveRequest`."""
    known, used = exchange.known, exchange.estimated_usage
    client = "gone" if exchange.client_left else "slow" if exchange.client_is_slow() else "connected"
    return LiveRequest(
        id=trail.entry_id,
        owner=caller.owner,
        key_name=caller.name,
        door=door,
        model=known.model[:NAME_LENGTH],
        upstream=upstream,
        response_id=known.response_id,
        state=exchange.state.value,
        age=age,
        tokens=used.output_tokens if used is not None else 0,
        first=first,
        calls=calls,
        stored=known.stored,
        client=client if door != "background" else "",
        retries=trail.retries,
        retry_cause=trail.retry_cause,
    )


def status_of(failure: Failure | None, given: object) -> int:
    """Return the HTTP status of the answer to the client. `given` is the server's status, if the server knows it."""
    if isinstance(given, int):
        return given
    if failure is None:
        return 200
    return failure.status or (_CLIENT_GONE if failure.fault == "cancelled" else 0)


def queue_entry(owner: str, response: Mapping[str, Any], job: JobRequest | None, at: float) -> Entry:
    """Return the journal's entry of a background response that was cancelled before a worker ran it. `response` is the
    response's stored object. `job` is its request, or None if the request is not readable. `at` is the time of the
    cancellation in seconds since the epoch."""
    conversation = response.get("conversation") or {}
    sender = job.sender(owner) if job is not None else Caller(owner)
    waited = max(0.0, at - (job.created_at if job is not None else float(response["created_at"])))
    return Entry(
        id=new_id("entry"),
        owner=owner,
        request_id=job.request_id if job is not None else "",
        key_id=sender.key_id,
        key_name=sender.name,
        team=sender.team,
        door="background",
        model=str(response.get("model") or ""),
        response_id=str(response["id"]),
        previous_id=str(response.get("previous_response_id") or ""),
        conversation_id=str(conversation.get("id") or ""),
        outcome=str(response["status"]),
        status=200,
        stored=True,
        seconds=waited,
        detail=Detail(
            spans=(JournalSpan("queue", "", 0.0, waited),),
            request_bytes=len(bytes(job.body)) if job is not None else 0,
        ),
    )


def plain_entry(
    door: str, request_id: str, caller: Caller, path: str, failure: Failure | None, message: str = ""
) -> Entry:
    """Return the journal's entry of a request without an exchange. Antiphon refused this request, or forwards it to an
    upstream unchanged."""
    return Entry(
        id=new_id("entry"),
        owner=caller.owner,
        request_id=request_id,
        key_id=caller.key_id,
        key_name=caller.name,
        team=caller.team,
        door=door,
        upstream=failure.upstream if failure is not None else "",
        outcome="error" if failure is not None else "completed",
        fault=failure.fault if failure is not None else "",
        code=failure.code if failure is not None else "",
        status=failure.status if failure is not None else 200,
        detail=Detail(
            message=_without_keys(message)[:_TEXT_LENGTH],
            cause=_without_keys(failure.cause)[:_TEXT_LENGTH] if failure is not None else "",
            advice=advice_for(failure) if failure is not None else "",
            upstream_status=failure.upstream_status if failure is not None else 0,
            path=_without_keys(path)[:_ID_LENGTH],
            operation=failure.operation if failure is not None else "",
        ),
    )


def _without_keys(text: str) -> str:
    """Remove API keys. A client may put a key into the path of a URL, and the message about an unknown path quotes the
    path."""
    return KEYS.sub("[redacted]", text)
