"""Observes one response: its calls, their times, and its outcome.

An observation collects facts during the response. At the end of the response, the observation writes the log line and
updates the metrics and the usage once. It implements the exchange's `Observer` protocol, also for calls that Envoy
makes. `outcome.py` formats the log line, `metrics.py` stores the numbers, and `response_spans.py` makes the spans.

Invariants: `end` reports each response exactly once. This module changes no response and reads no text of its input or
output.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
from msgspec.structs import replace

from antiphon.config.operators import ConsoleSettings
from antiphon.config.upstreams import PriceSettings
from antiphon.engine.exchange.failure import Failure, ended_early
from antiphon.engine.exchange.phase import EXCHANGE_PATHS
from antiphon.engine.exchange.recording_exchange import RecordingExchange
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CancelReason, Usage
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.jobs import JobRequest
from antiphon.engine.ports.journal import REFUSED, Entry, Journal, LiveRequest, Recording
from antiphon.engine.ports.quotas import Reservation
from antiphon.engine.ports.usage_sums import CallUsage, UsageLedger
from antiphon.observability.endings import EarlyEnd, Endings
from antiphon.observability.journal_entry import Trail, live_request, plain_entry, status_of
from antiphon.observability.metric_values import NAME_LENGTH
from antiphon.observability.metrics import Metrics
from antiphon.observability.outcome import Ended, caller_fields, with_cause, write_outcome
from antiphon.observability.response_spans import ResponseSpans
from antiphon.observability.served_ids import ServedIds
from antiphon.observability.span_names import ATTEMPT
from antiphon.observability.tracing import read_parent
from antiphon.types.transport import Headers, UpstreamFault

if TYPE_CHECKING:
    from antiphon.observability.otel import Tracer

_log = structlog.get_logger("antiphon.response")
_OWNER_LENGTH: Final = 12
_AGAIN: Final = "background"
_OVER: Final = frozenset({"completed", "incomplete", "failed"})
_ERRORS: Final = 400
_UNAUTHORIZED: Final = 401
_UNKNOWN: Final = CancelReason.CONNECTION_ENDED.value


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The telemetry objects of one process, which all observations use."""

    metrics: Metrics
    tracer: Tracer | None = None
    ledger: UsageLedger | None = None
    price_of: Callable[[str], PriceSettings | None] = lambda _: None
    endings: Endings = field(default_factory=Endings)
    served: ServedIds = field(default_factory=ServedIds)
    reserve: Callable[[Caller], Reservation] | None = None
    counts_owners: bool = False
    journal: Journal | None = None
    """Receives the entry of each finished request. `journal` is None if the console is not enabled."""
    console: ConsoleSettings = field(default_factory=ConsoleSettings)
    in_flight: set[Observation] = field(default_factory=set)
    """The observations of the requests in flight. If `journal` is None, the set is empty."""

    def cost(self, model: str, usage: Usage) -> int:
        """Return the cost of a model call in millionths of the currency, or 0 for a model without a price."""
        price = self.price_of(model[:NAME_LENGTH])
        return price.cost(usage.input_tokens, usage.cached_tokens, usage.output_tokens) if price is not None else 0

    def observe(self, door: str, request_id: str, caller: Caller, headers: Headers | None = ()) -> Observation:
        """Begin to observe a response. The caller may change the attribute `door` until the response ends. `headers` is
        None while the request's headers are unknown (see `begin_job`)."""
        return Observation(self, door, request_id, caller, headers)

    def refused(self, door: str, request_id: str, caller: Caller, path: str, failure: Failure, message: str) -> None:
        """Record in the journal a request that was refused before Antiphon created its `ResponseExchange`. The entry
        has the outcome `refused`, unless a client with a valid key asked for a response."""
        if self.journal is not None:
            entry = plain_entry(door, request_id, caller, path, failure, message)
            if path not in EXCHANGE_PATHS or failure.counted or failure.status == _UNAUTHORIZED:
                entry = replace(entry, outcome=REFUSED)
            self.journal.note(entry, None)

    def live(self) -> list[LiveRequest]:
        """The requests in flight, oldest first. If `journal` is None, the list is empty."""
        observations = sorted(self.in_flight, key=lambda one: one.started)
        return [live for one in observations if (live := one.live()) is not None]

    def recorded(self, entry_id: str, owner: str = "") -> Recording | None:
        """The recorded contents so far of the request in flight with this entry id. If `owner` is not empty, only a
        request of this owner counts."""
        named = (one for one in self.in_flight if one.entry_id == entry_id and one.belongs_to(owner))
        return next((one.recorded() for one in named), None)

    def stop(self, entry_id: str, owner: str = "") -> bool:
        """End the request in flight with this entry id, because an operator cancels it. Returns whether there was such
        a request.

        `owner` restricts the call to requests of this owner. This method does not end background responses, because
        `Background` cancels them by their response id.
        """
        named = [one for one in self.in_flight if one.entry_id == entry_id and one.belongs_to(owner)]
        return any([one.stop() for one in named])  # noqa: C419 - stops each of them


class Observation:
    """Observes one response. `door` is the server that handles the response: the ext_proc or the HTTP server."""

    def __init__(
        self, telemetry: Telemetry, door: str, request_id: str, caller: Caller, headers: Headers | None
    ) -> None:
        self._telemetry = telemetry
        self._metrics = telemetry.metrics
        self.door = door
        self.request_id = request_id
        self._caller = caller
        self.reservation = telemetry.reserve(caller) if telemetry.reserve is not None else None
        self.started = time.perf_counter()
        self._queued_at = 0.0
        self._queued_bytes = 0
        self._calls = 0
        self._upstream = ""
        self._operation = ""
        self._called_at = 0.0
        self._status = 0
        self._head: float | None = None
        self._open = False
        self._first: float | None = None
        self._used: list[tuple[str, Usage, bool]] = []
        self._ended = False
        self._metrics.in_flight.add()
        # The table of served ids omits background responses, because another worker runs them again after a crash.
        self._place = telemetry.served.begin(request_id) if door != _AGAIN else -1
        self._spans: ResponseSpans | None = None
        self._trace_id = ""
        self._trail: Trail | None = None
        self._exchange: ResponseExchange | None = None
        if telemetry.journal is not None:
            self._trail = Trail()
            telemetry.in_flight.add(self)
        if headers is not None:
            self._continue_trace(headers)

    def watch(self, exchange: ResponseExchange) -> None:
        """Observe this exchange."""
        exchange.observe(self)
        if self._trail is not None:
            self._exchange = exchange

    def begin_job(self, job: JobRequest, headers: Headers, attempt: int) -> None:
        """Begin a background job: set the request's id, caller and trace, which were unknown until the worker took the
        job. `attempt` is the number of this attempt."""
        self.request_id = job.request_id
        self._queued_at = job.created_at
        self._queued_bytes = job.loaded_bytes
        if self._trail is not None:
            self._trail.begin_job(time.time() - job.created_at - (time.perf_counter() - self.started), attempt)
        name, team, key_id = job.caller
        self._caller = Caller(self._caller.owner, name, team, key_id)
        if self.reservation is not None:
            self.reservation.caller = self._caller
        self._continue_trace(headers)
        if self._spans is not None:
            self._spans.request.set({ATTEMPT: attempt})

    def call_retried(self, failures: int, cause: str) -> None:
        """Record that a worker retries the current model call, because the upstream is unreachable."""
        if self._trail is not None:
            self._trail.call_retried(failures, cause)

    def _continue_trace(self, headers: Headers) -> None:
        tracer = self._telemetry.tracer
        if tracer is not None:
            self._spans = ResponseSpans.begin(tracer, self.door, headers)
        if self._spans is not None:
            self._trace_id = self._spans.request.trace_id
        elif (parent := read_parent(headers)) is not None:
            self._trace_id = parent[0]

    # Methods that the exchange calls.

    def trace(self) -> Headers:
        """Implements `Observer.trace`."""
        return self._spans.request.headers() if self._spans is not None else ()

    def call_began(self, upstream: str, operation: str, model: str, body: bytes) -> Headers:
        """Implements `Observer.call_began`."""
        self._calls += 1
        self._upstream, self._operation = upstream, operation
        self._called_at, self._status, self._head, self._open = time.perf_counter(), 0, None, True
        if self._trail is not None:
            self._trail.call_began(upstream, operation)
        return self._spans.begin_call(upstream, model, body) if self._spans is not None else ()

    def call_withdrawn(self) -> None:
        """Implements `Observer.call_withdrawn`."""
        if self._open:
            self._open, self._upstream, self._calls = False, "", self._calls - 1
            if self._spans is not None:
                self._spans.drop_call()
            if self._trail is not None:
                self._trail.call_withdrawn()

    def head_came(self, upstream: str, status: int) -> None:
        """Implements `Observer.head_came`."""
        self._upstream, self._status = upstream, status
        if status:
            self._head = time.perf_counter() - self._called_at
        if self._trail is not None:
            self._trail.head_came(upstream, status)

    def first_data_came(self) -> None:
        """Implements `Observer.first_data_came`."""
        now = time.perf_counter()
        if self._first is None:
            self._first = now
        if self._spans is not None:
            self._spans.first_data(now - self._called_at)
        if self._trail is not None:
            self._trail.first_data_came()

    def call_ended(self, fault: str = "") -> None:
        """Implements `Observer.call_ended`."""
        self._end_call(fault)

    def _end_call(self, fault: str, at: float | None = None) -> None:
        if self._open:
            self._open = False
            status = fault or (str(self._status) if self._status else "unreachable")
            self._metrics.upstream_called(self._upstream, self._operation, status, self._head)
            if self._spans is not None:
                self._spans.call_over(self._upstream, self._status, fault, at)
            if self._trail is not None:
                self._trail.call_ended(fault)

    def call_used(self, usage: Usage, *, estimated: bool = False) -> None:
        """Implements `Observer.call_used`."""
        self._used.append((self._upstream, usage, estimated))
        if self._spans is not None:
            self._spans.call_used(usage)
        if self._trail is not None:
            self._trail.call_used(usage, estimated)

    def compacted(self) -> None:
        """Implements `Observer.compacted`."""
        self._metrics.compactions.add()
        if self._trail is not None:
            self._trail.compacted()

    def prompts_compared(self, result: str, reason: str) -> None:
        """Implements `Observer.prompts_compared`."""
        self._metrics.prompt_comparisons.add(result, reason)

    # Methods that the server calls.

    def drop(self) -> None:
        """Cancel the observation without a report, because the request was not read completely. `drop` does nothing
        after `end`."""
        if not self._ended:
            self._ended = True
            self._metrics.in_flight.add(by=-1)
            self._telemetry.served.end(self._place)
            if self.reservation is not None and self.door != _AGAIN:
                self.reservation.close(0, 0, 0)
            if self._spans is not None:
                self._spans.drop()
            self._leave_flight()

    def end(self, exchange: ResponseExchange, outcome: str, failure: Failure | None = None, **known: object) -> None:
        """Record the end of the response and report it. `known` has further fields for the log line. Later calls do
        nothing."""
        if self._ended:
            return
        self._ended = True
        self._metrics.in_flight.add(by=-1)
        self._telemetry.served.end(self._place)
        request = exchange.known
        if self._trail is not None:
            self._trail.end(exchange, self._trace_id)
            self._leave_flight()
        failure = with_cause(failure or request.failure, outcome)
        now = time.perf_counter()
        ended = Ended(
            now - self.started,
            outcome,
            failure,
            request.model[:NAME_LENGTH],
            request.response_id,
            bool(request.fallback),
            bool(request.unknown),
            request.left_out,
            self._streamed(now, request.events - 1) if request.streaming else None,
            known,
            request.queued,
        )
        if failure is not None and failure.code == _UNKNOWN:
            asked = partial(self._over_early, ended, exchange, time.time())
            self._telemetry.endings.early.ask(self.request_id, asked)
            return
        self._over(ended, exchange, time.time())

    def _over_early(self, ended: Ended, exchange: ResponseExchange, at: float, end: EarlyEnd | None) -> None:
        """Report a response whose stream ended early. `end` is Envoy's report about which side ended the stream, or
        None if no report arrived."""
        failure, outcome = ended.failure, ended.outcome
        if end is not None and failure is not None:
            failure = ended_early(failure, end.details, end.status, client_left=end.client_left)
            if not end.client_left:
                self._end_call(UpstreamFault.CUT.value, at)
                outcome = "error" if failure.status >= _ERRORS else "failed"
        self._over(ended._replace(failure=failure, outcome=outcome), exchange, at)

    def _over(self, ended: Ended, exchange: ResponseExchange, at: float) -> None:
        self._end_call("cancelled", at)
        if self.reservation is not None:
            if self.door == _AGAIN:
                self._settle_job(self.reservation, ended, exchange)
            else:
                # `_tell` settles the other amounts later, in a batch, which takes less time.
                self.reservation.free_slots()
        if self._spans is not None:
            self._spans.end(exchange, self.door, self.request_id, ended.outcome, ended.failure, at)
        # Report failures immediately, so that their log lines follow closely after their causes.
        loud = ended.failure is not None or ended.unknown
        self._telemetry.endings.add(partial(self._tell, ended, at), now=loud)

    def _leave_flight(self) -> None:
        self._telemetry.in_flight.discard(self)
        # The exchange refers to this observation, and a reference cycle would keep the exchange in memory.
        self._exchange = None

    def live(self) -> LiveRequest | None:
        """Return this request's entry in the list of requests in flight, or None if its exchange does not exist yet."""
        exchange, trail = self._exchange, self._trail
        if exchange is None or trail is None:
            return None
        age = time.perf_counter() - self.started
        first = self._first - self.started if self._first is not None else None
        return live_request(exchange, self._caller, trail, self.door, self._upstream, age, first, self._calls)

    def recorded(self) -> Recording | None:
        """The recorded contents of this request so far, or None if the settings do not record this request."""
        exchange, console = self._exchange, self._telemetry.console
        if console.record != "all" or not isinstance(exchange, RecordingExchange) or exchange.parts is None:
            return None
        return exchange.parts.whole(self.started) if exchange.known.stored or console.record_unstored else None

    @property
    def entry_id(self) -> str:
        """The id of the request's entry in the journal."""
        return self._trail.entry_id if self._trail is not None else ""

    def belongs_to(self, owner: str) -> bool:
        """Whether the request belongs to this owner. An empty `owner` stands for any owner."""
        return not owner or owner == self._caller.owner

    def stop(self) -> bool:
        """End the request, because an operator cancels it. Returns False if this method cannot stop the request."""
        exchange = self._exchange
        return self.door != _AGAIN and isinstance(exchange, RecordingExchange) and exchange.stop()

    def _streamed(self, now: float, gaps: int) -> tuple[float, float | None] | None:
        """Return the seconds until the upstream's first data, and the mean seconds between the stream's events. Returns
        None if no data arrived."""
        if self._first is None:
            return None
        return self._first - self.started, (now - self._first) / gaps if gaps > 0 else None

    def _tell(self, ended: Ended, at: float) -> None:
        tokens, output, cost = self._spend(ended.model)
        if self.reservation is not None and self.door != _AGAIN:
            if self._calls and not self._used and ended.failure is None:
                # The server forwarded the upstream's answer unread, or the answer reported no usage.
                self.reservation.close_as_estimated()
            else:
                self.reservation.close(tokens, output, cost, queued=ended.queued)
        metrics, failure, model = self._metrics, ended.failure, ended.model
        fault, code = (failure.fault, failure.code) if failure is not None else ("none", "")
        if failure is not None and not failure.upstream_status:
            metrics.refused_for(code)
        metrics.response_finished(
            ended.outcome, self.door, ended.seconds, fault=fault, code=code, upstream=self._upstream
        )
        if ended.streamed is not None:
            metrics.streamed(self.door, *ended.streamed)
        if self._telemetry.counts_owners:
            metrics.owner_served(self._caller.name or self._caller.owner, tokens, cost / 1e6)
        write_outcome(
            _log,
            "response",
            failure,
            ended.seconds,
            {
                "timestamp": at,
                "request_id": self.request_id,
                "trace_id": self._trace_id,
                "response_id": ended.response_id,
                "door": self.door,
                "model": model,
                "outcome": ended.outcome,
                "owner": self._caller.owner[:_OWNER_LENGTH],
                **caller_fields(self._caller),
                "upstream": self._upstream,
                "fallback": ended.fell_back,
                "calls": self._calls if self._calls > 1 else 0,
                **self._tokens(),
                "cost": cost / 1e6,
                "head_seconds": round(self._head, 6) if self._head is not None else None,
                "ignored": ended.left_out,
                **ended.known,
            },
            warn=ended.unknown,
        )
        if self._trail is not None and self._telemetry.journal is not None:
            self._note(self._telemetry.journal, self._trail, ended, at, cost)

    def _note(self, journal: Journal, trail: Trail, ended: Ended, at: float, cost: int) -> None:
        """Pass the request's entry and its recorded contents to the journal."""
        failure, caller, console = ended.failure, self._caller, self._telemetry.console
        recording = trail.recording(
            self.started, console.record, failed=failure is not None, unstored=console.record_unstored
        )
        used = self._tokens()
        response_id, previous_id, conversation_id = trail.ids
        entry = Entry(
            id=self.entry_id,
            owner=caller.owner,
            request_id=self.request_id,
            key_id=caller.key_id,
            key_name=caller.name,
            team=caller.team,
            door=self.door,
            model=ended.model or trail.named_model,
            upstream=self._upstream,
            response_id=response_id or str(ended.known.get("response_id", "")),
            previous_id=previous_id,
            conversation_id=conversation_id,
            outcome=ended.outcome,
            fault=failure.fault if failure is not None else "",
            code=failure.code if failure is not None else "",
            status=status_of(failure, ended.known.get("status")),
            stored=trail.stored,
            recorded=recording is not None,
            seconds=ended.seconds,
            first=self._first - self.started if self._first is not None else None,
            calls=self._calls,
            input_tokens=used["input_tokens"],
            cached_tokens=used["cached_tokens"],
            output_tokens=used["output_tokens"],
            reasoning_tokens=used["reasoning_tokens"],
            estimated=bool(used["estimated"]),
            cost=cost,
            detail=trail.detail(self.started, failure, str(ended.known.get("path", ""))),
            age=max(0.0, time.time() - at),
        )
        journal.note(entry, recording)

    def _settle_job(self, reservation: Reservation, ended: Ended, exchange: ResponseExchange) -> None:
        """Settle the quotas of an attempt of a background response."""
        spent = {"tokens": 0, "written": 0, "cost": 0}
        for _, usage, _ in self._used:
            spent["tokens"] += usage.input_tokens + usage.output_tokens
            spent["written"] += usage.output_tokens
            spent["cost"] += self._telemetry.cost(ended.model, usage)
        size, limit = exchange.request_bytes + self._queued_bytes, exchange.known.output_limit
        model, over = exchange.known.model, ended.outcome in _OVER
        reservation.close_job(model, size=size, output=limit, **spent, queued_at=self._queued_at, ended=over)

    def _spend(self, model: str) -> tuple[int, int, int]:
        """Count the usage of all model calls. Returns all tokens, the output tokens, and the cost in millionths."""
        telemetry, tokens, output, total = self._telemetry, 0, 0, 0
        for upstream, usage, estimated in self._used:
            cost = telemetry.cost(model, usage)
            tokens += usage.input_tokens + usage.output_tokens
            output += usage.output_tokens
            total += cost
            self._metrics.spent(model, upstream, usage, cost / 1e6, estimated=estimated)
            if telemetry.ledger is not None:
                telemetry.ledger.note(CallUsage(self._caller.owner, model, upstream, usage, estimated, cost))
        return tokens, output, total

    def _tokens(self) -> dict[str, int | bool]:
        told = {"estimated": False, "input_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "reasoning_tokens": 0}
        for _, usage, estimated in self._used:
            told["estimated"] |= estimated
            told["input_tokens"] += usage.input_tokens
            told["cached_tokens"] += usage.cached_tokens
            told["output_tokens"] += usage.output_tokens
            told["reasoning_tokens"] += usage.reasoning_tokens
        return told
