"""An exchange that the console can watch, record and stop.

Lives here: the steps of a request that are not model calls, and its end by an operator. Also: which inputs and outputs
become recorded parts. Not here: the parts and their limit (`recorded_parts.py`), the journal's entry of a
request (`observability/journal_entry.py`).

A process without the console uses the plain exchange, so the other exchanges pay nothing for this module.

Invariant: a recording exchange behaves as a plain exchange until an operator stops it. No recorded part contains a
credential of the request or a secret of the settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from antiphon.engine.exchange.failure import Failure, operation_in
from antiphon.engine.exchange.options import ExchangeOptions
from antiphon.engine.exchange.recorded_parts import RecordedParts, secrets_of_tools, shown_headers
from antiphon.engine.exchange.response_exchange import TIMED, ResponseExchange
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import (
    Action,
    CallUpstream,
    Context,
    Enqueue,
    Finish,
    LoadContext,
    PrepareTools,
    RequestHead,
    RunTools,
    SaveResponse,
    SendBody,
    SendHead,
)
from antiphon.engine.ports.hosted_tools import PreparedTool, ToolResult
from antiphon.errors import ApiError, StoreError
from antiphon.ids import Clock, IdFactory
from antiphon.redaction import SecretSearch, bearer_token
from antiphon.types.transport import Headers, UpstreamError

LOOK: Final = 1.0
"""The most seconds until the driver of a stopped request ends the request."""
TOOL_BYTES: Final = 64 * 1024
"""The most bytes of a tool's output in a recording."""
STOPPED: Final = "cancelled_by_operator"
_LOAD: Final = "load"
_SAVE: Final = "save"


class Step(NamedTuple):
    """One step of a request, with its times on the exchange's monotonic clock. `kind` is a kind of `Span`."""

    kind: str
    name: str
    began: float
    ended: float
    error: str


class RecordingExchange(ResponseExchange):
    """A `ResponseExchange` that records. `ticks` is a monotonic clock. `search` looks for the secrets of the settings.

    `limit` is the maximum of recorded bytes, and 0 if nothing is recorded. `unstored` tells whether requests with
    `store: false` are recorded too.
    """

    def __init__(
        self,
        options: ExchangeOptions,
        new_id: IdFactory,
        clock: Clock,
        ticks: Callable[[], float],
        search: SecretSearch,
        limit: int,
        unstored: bool,
    ) -> None:
        super().__init__(options, new_id, clock)
        self._ticks = ticks
        self._search = search
        self._record_limit = limit
        self._unstored = unstored
        self._begun: dict[str, tuple[str, str, float]] = {}
        self._asks_end = False
        self.parts: RecordedParts | None = None
        """The recorded parts, or None if the request is not recorded."""
        self.steps: list[Step] = []
        """The steps that have ended. The limits of tool calls bound their number."""
        self.path = ""
        """The path of the request, without its query."""

    def stop(self) -> bool:
        """End the request with an error, because an operator cancels it. Returns False if the request is over, or if
        it follows a background response, which a worker makes.

        The request ends when its driver next passes in the time, or as soon as it waits for another party.
        """
        if self.done or self.state is State.FOLLOWING:
            return False
        self._asks_end = True
        return True

    # Inputs

    def receive_request(self, head: RequestHead, body: bytes) -> None:
        self.path = head.path.partition("?")[0]
        if self._record_limit and self._options.stores(head.owner):
            declared = secrets_of_tools(body)
            secrets = (*bearer_token(head.header("authorization")), *(declared or ()))
            self.parts = RecordedParts(self._record_limit, self._ticks, self._search, secrets)
            facts = {"method": head.method, "path": self.path, "headers": shown_headers(head.headers)}
            self.parts.add("request", body if declared is not None else b"", facts)
        super().receive_request(head, body)
        self._forget_unstored()

    def receive_context(self, context: Context | ApiError) -> None:
        self._end_step(_LOAD, _code_of(context))
        super().receive_context(context)
        self._forget_unstored()

    def receive_tools(self, prepared: tuple[PreparedTool, ...] | ApiError) -> None:
        self._end_step(_LOAD, _code_of(prepared))
        super().receive_tools(prepared)

    def receive_tool_result(self, result: ToolResult) -> None:
        name = self._end_step(result.call_id, "failed" if result.failed else "")
        if self.parts is not None:
            output = result.output.encode("utf-8", "replace")
            facts = {"name": name, "call_id": result.call_id, "failed": result.failed, "size": len(output)}
            self.parts.add("tool", output[:TOOL_BYTES], facts)
        super().receive_tool_result(result)

    def receive_unclaimed(self, error: StoreError) -> None:
        for call_id in tuple(self._begun):
            self._end_step(call_id, "not_claimed")
        super().receive_unclaimed(error)

    def receive_upstream_head(self, status: int, headers: Headers) -> None:
        if self.parts is not None:
            self.parts.add("head", b"", {"status": status, "headers": shown_headers(headers)})
        super().receive_upstream_head(status, headers)

    def receive_upstream_data(self, data: bytes) -> None:
        if self.parts is not None:
            self.parts.flow("data", data)
        super().receive_upstream_data(data)

    def receive_upstream_end(self, error: UpstreamError | None = None) -> None:
        if self.parts is not None:
            facts = {"fault": error.fault.value, "detail": error.detail} if error is not None else {}
            self.parts.add("end", b"", facts)
        super().receive_upstream_end(error)

    def receive_saved(self, error: StoreError | ApiError | None = None) -> None:
        why = "" if error is None else _code_of(error) or "failed"
        self._end_step(_SAVE, why)
        if self.parts is not None:
            self.parts.add("saved", b"", {"error": why} if why else {})
        super().receive_saved(error)

    def receive_time(self, at: float) -> float:
        if self._asks_end and self.state in TIMED:
            self._asks_end = False
            error = stopped_by_operator()
            core = self._core
            why = Failure("cancelled", error.cause, error.status, STOPPED, operation_in(self.state), core.upstream_name)
            core.note_failure(why)
            self.receive_too_much(error)
        return min(super().receive_time(at), at + LOOK)

    # Outputs

    def actions(self) -> list[Action]:
        actions = super().actions()
        for action in actions:
            self._note(action)
        return actions

    def next_action(self) -> Action | None:
        action = super().next_action()
        if action is not None:
            self._note(action)
        return action

    def _note(self, action: Action) -> None:
        """Record an action that the driver takes."""
        parts = self.parts
        if isinstance(action, SendBody):
            if parts is not None:
                parts.flow("event", action.data)
        elif isinstance(action, CallUpstream):
            if parts is not None:
                call = action.request
                facts: dict[str, Any] = {"path": call.path, "upstream": call.upstream, "model": call.model}
                facts |= {"stream": call.stream, "headers": shown_headers(call.headers)}
                parts.add("call", call.body, facts)
        elif isinstance(action, SendHead):
            if parts is not None:
                headers = shown_headers(action.headers)
                parts.add("event_head", b"", {"status": action.status, "headers": headers, "streamed": action.streamed})
        elif isinstance(action, Finish):
            if parts is not None:
                parts.add("finish", b"", {"outcome": action.outcome})
        elif isinstance(action, RunTools):
            for one in action.calls:
                self._begin_step(one.call_id, "tool", one.target.name or one.tool.type)
        elif isinstance(action, LoadContext):
            self._begin_step(_LOAD, _LOAD, "context")
        elif isinstance(action, PrepareTools):
            self._begin_step(_LOAD, _LOAD, "tools")
        elif isinstance(action, SaveResponse | Enqueue):
            self._begin_step(_SAVE, _SAVE, "response" if isinstance(action, SaveResponse) else "job")

    def _begin_step(self, key: str, kind: str, name: str) -> None:
        self._begun[key] = (kind, name, self._ticks())

    def _end_step(self, key: str, error: str) -> str:
        """End the step that began under this key, and return its name. Returns an empty name if none began."""
        kind, name, began = self._begun.pop(key, ("", "", 0.0))
        if kind:
            self.steps.append(Step(kind, name, began, self._ticks(), error))
        return name

    def _forget_unstored(self) -> None:
        """Delete the parts of a request with `store: false`, unless the settings allow them."""
        if not self._unstored and not self._core.known.quoted:
            self.parts = None


def stopped_by_operator() -> ApiError:
    """The client's error for a request that an operator has cancelled in the console. Clients do not retry it."""
    error = ApiError(
        "The request was cancelled by its owner or an operator of this server, in the console.",
        status=503,
        code=STOPPED,
        headers=(("x-should-retry", "false"),),
    )
    error.cause = "an operator cancelled the request in the console"
    return error


def _code_of(answer: object) -> str:
    """The code of an error that a step ended with. Empty if the step succeeded."""
    if isinstance(answer, ApiError):
        return answer.code or "failed"
    return ""
