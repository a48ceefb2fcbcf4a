"""Defines the base class of an exchange's phases, and the options, facts and state that all phases share.

`Phase` has one method for each input: loaded objects, tool results, the upstream's answer. `ExchangeCore` has the
operations of all phases: request a model call, refuse the request, follow a background response, replay a stored
answer, end the exchange. `ExchangeOptions` has the options that come from the settings. `Known` has the facts about the
request that servers and observers read. `states.py` defines which inputs each state allows.

The phases are in `native_request.py`, `counted_request.py` and `queued_request.py`. The phases of a response that the
sidecar makes are in `made_response.py`, `running_tools.py` and `response_end.py`.

Invariant: an exchange emits `Finish` once, as its last action. An exchange releases its conversation lock and its
idempotency key before the client gets the end of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from antiphon.config.limits import LimitSettings, TimeoutSettings
from antiphon.config.tools import ToolSettings
from antiphon.engine.exchange.answer_readers import AnswerReader
from antiphon.engine.exchange.call_headers import forwarded
from antiphon.engine.exchange.client_answer import REPLAYED, Answering
from antiphon.engine.exchange.failure import Failure, not_answered, refusal
from antiphon.engine.exchange.model_routes import ModelRoutes
from antiphon.engine.exchange.states import State, StateMachine
from antiphon.engine.ports.actions import (
    Action,
    CallUpstream,
    CancelReason,
    Context,
    Finish,
    FollowResponse,
    LoadContext,
    ReleaseConversation,
    RequestHead,
    ResponseRecord,
    SendBody,
    UpstreamRequest,
    Usage,
)
from antiphon.engine.ports.hosted_tools import PreparedTool, ToolResult
from antiphon.engine.ports.jobs import whole_body
from antiphon.engine.ports.observer import UNOBSERVED, Observer
from antiphon.engine.ports.state import StoredResponse
from antiphon.errors import ApiError, ExchangeStateError, InvalidRequest, StoreError
from antiphon.ids import Clock, IdFactory
from antiphon.redaction import KnownSecrets, bearer_token
from antiphon.sealing import Sealer
from antiphon.translation.answer.upstream_errors import (
    as_event_failure,
    is_about_the_key,
    map_upstream_answer,
    own_credentials_refused,
)
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.events.encode import DONE
from antiphon.translation.events.item_events import replayed
from antiphon.translation.token_usage import add_usage
from antiphon.translation.values import Ending
from antiphon.types.json import encode
from antiphon.types.response import UsageObject
from antiphon.types.tolerance import Tolerance
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault
from antiphon.types.views import Manner

RESPONSES_PATH: Final = "/v1/responses"
COMPACT_PATH: Final = "/v1/responses/compact"
COUNT_PATH: Final = "/v1/responses/input_tokens"
EXCHANGE_PATHS: Final = (RESPONSES_PATH, COMPACT_PATH, COUNT_PATH)


@dataclass(frozen=True, slots=True)
class ExchangeOptions:
    """The options of every exchange, which come from the settings.

    `routes` is the routing table of models. `sealer` encrypts the server's data in texts that a client or a job stores.
    """

    routes: ModelRoutes
    sealer: Sealer
    open_responses_names: bool = False
    reasoning_as: str = "auto"
    limits: LimitSettings = field(default_factory=LimitSettings)
    tool_limits: ToolSettings = field(default_factory=ToolSettings)
    times: TimeoutSettings = field(default_factory=TimeoutSettings)
    secrets: KnownSecrets = ()
    """Secrets that the sidecar removes from every text of an upstream before a client gets the text."""
    several_owners: bool = True
    """Whether the server has several owners. If so, a client may not use another owner's objects at a native
    upstream."""
    seal_credentials: bool = False
    """Whether the sidecar stores encrypted client credentials in a queued job. If False, the sidecar refuses a
    background request that needs the client's credentials."""
    never_stored: frozenset[str] = frozenset()
    """The owners whose responses the sidecar never stores, even if the request sets `store`. `*` means all owners."""
    strict: bool = False
    """Whether the sidecar refuses a request with unknown fields. Otherwise the sidecar ignores these fields."""
    tool_types: frozenset[str] = frozenset()
    """The types of hosted tools that the sidecar runs."""
    tools_not_started: frozenset[str] = frozenset()
    """The types of hosted tools that the operator has enabled, but that could not start in this process."""

    def stores(self, owner: str) -> bool:
        """Whether the sidecar may store this owner's responses."""
        return self.never_stored.isdisjoint((owner, "*"))


class Known:
    """The facts about a request and its response that servers and observers read. Each phase sets attributes as soon as
    it has a fact. Until then, an attribute has its default value.
    """

    def __init__(self) -> None:
        self.model = ""
        """The model that the request names. Empty if Antiphon refuses the request."""
        self.named_model = ""
        """The model that the request names, also if Antiphon refuses the request. Only the journal may use this value,
        because a client can choose any number of names."""
        self.response_id = ""
        self.previous_id = ""
        """The `previous_response_id` of the request, or empty."""
        self.conversation_id = ""
        """The id of the conversation that the request names, or empty."""
        self.message = ""
        """The message of the HTTP error that the client gets, or empty."""
        self.streaming = False
        """Whether the client requested an event stream and the sidecar generates the events. False for a native
        upstream, whose events the sidecar forwards."""
        self.stored = False
        """Whether the sidecar will store the response."""
        self.quoted = True
        """Whether the log may quote an upstream's error."""
        self.makes_response = False
        """Whether the request creates a response on this server. A token count and a native request create no response
        on this server."""
        self.needs_drive = False
        """Whether the sidecar must make the model calls itself. In relay mode, Envoy makes the model call, but only for
        a request that needs exactly one model call."""
        self.replayed = False
        """Whether the answer is a replay: the stored response of an earlier request with the same idempotency key."""
        self.queued = False
        """Whether this request has stored a job. A worker runs the job, even if the client disconnects."""
        self.loaded_bytes = 0
        """The number of bytes of history and files. If quotas apply, Antiphon estimates the request's tokens from this
        number. 0 if no quotas apply."""
        self.output_limit: int | None = None
        """The request's `max_output_tokens`, or None."""
        self.manner = Manner()
        """Whether the client requested a stream, and whether it requested a background response."""
        self.tolerance: Tolerance | None = None
        self.builder: ResponseBuilder | None = None
        """The builder of the response."""
        self.spent: UsageObject | None = None
        """The token usage of all earlier model calls of this response, without the current call."""
        self.failure: Failure | None = None
        """The first failure of the request, for the log. The exchange ignores later failures."""
        self.fallback = ""
        """The name of the upstream that answered after another upstream failed, or empty."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """The request's unknown fields, which the sidecar ignores."""
        return tuple(self.tolerance.names) if self.tolerance is not None else ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """The request's unknown fields, and the tools whose type is known but which this server does not run."""
        tools = self.tolerance.tools if self.tolerance is not None else ()
        return tuple(dict.fromkeys((*self.unknown, *tools)))

    @property
    def usage(self) -> Usage | None:
        """The token counts of all model calls, or None while no counts are known."""
        used = self.builder.response.usage if self.builder is not None else None
        if self.spent is not None:
            used = add_usage(self.spent, used)
        return Usage.of(used) if used is not None else None

    @property
    def output_bytes(self) -> int:
        """The size of the response so far, in bytes."""
        return self.builder.draft.size if self.builder is not None else 0

    @property
    def output_items(self) -> bytes:
        """The finished output items, as a JSON array."""
        return encode(self.builder.draft.output) if self.builder is not None else b"[]"

    @property
    def events(self) -> int:
        """The number of events in the stream so far."""
        return self.builder.draft.number if self.builder is not None else 0


class ModelCall:
    """A call of an upstream, and the facts about the upstream's answer that have arrived so far."""

    __slots__ = ("answered_by", "local_reply", "reader", "size", "status")

    def __init__(self, size: int) -> None:
        self.size = size
        """The number of bytes in the body of the call."""
        self.reader = AnswerReader()
        self.status = 0
        """The HTTP status of the upstream's answer. 0 if no answer has arrived, or if Envoy answered instead of the
        upstream."""
        self.local_reply = ""
        """The value of the header that Envoy adds to an answer that it created itself. Empty if the upstream
        answered."""
        self.answered_by = ""
        """The name of the upstream that answered. Empty if the route has only one upstream."""


class ExchangeCore:
    """The state that all phases of one exchange share."""

    def __init__(self, options: ExchangeOptions, new_id: IdFactory, clock: Clock) -> None:
        self.options = options
        self.new_id = new_id
        self.clock = clock
        self.head = RequestHead("POST", RESPONSES_PATH, (), "")
        self.route = options.routes.default
        self.machine = StateMachine()
        self.actions: list[Action] = []
        self.answer = Answering(self.actions)
        self.call = ModelCall(0)
        """The present model call, or the previous one if no model call runs now."""
        self.known = Known()
        self.phase = Phase(self)
        """The current phase, which handles the next input."""
        self.observer: Observer = UNOBSERVED
        """The observer that records the model calls."""
        self.cancelled = False
        self.locked = False
        """Whether this exchange has locked its conversation."""
        self.claimed = False
        """Whether this exchange may have reserved an idempotency key or used approvals of tool calls."""
        self.keyed = False
        """Whether the request has an idempotency key. Such a request continues when its client disconnects, so that a
        retry gets the result."""
        self.counts = False
        """Whether the idempotency key and the approvals remain used after the response has ended, so that no request
        can use them again. True if the response succeeded, or if its tool calls may have changed external state."""

    @property
    def upstream_name(self) -> str:
        """The name of the called upstream, for the log. If the route has several upstreams, this is the group's name
        until one of its upstreams has answered."""
        return self.call.answered_by or self.route.upstream

    @property
    def secrets(self) -> KnownSecrets:
        """The secrets that the sidecar removes from the upstream's texts: this server's keys, and the client's key if
        the sidecar forwards that key."""
        secrets = self.options.secrets
        return (*secrets, *bearer_token(self.head.header("authorization"))) if self.route.passthrough else secrets

    def load(self, wanted: LoadContext) -> None:
        """Append the action that loads the objects to which the request refers."""
        self.machine.go(State.CONTEXT)
        self.actions.append(wanted)

    def ask_upstream(self, path: str, body: bytes, *, stream: bool, above: bool = False, native: bool = False) -> None:
        """Append the action for a model call on the upstream's `path`."""
        self.machine.go(State.CALLING)
        self.call = ModelCall(len(body))
        route, model = self.route, self.known.model
        operation = "native" if native else "responses"
        traced = self.observer.call_began(route.upstream, operation, model, body)
        headers = forwarded(self.head.headers, route, stream=stream, native=native, traced=traced)
        tries = len(route.upstreams)
        request = UpstreamRequest("POST", path, headers, body, model, stream, route.upstream, above, tries)
        self.actions.append(CallUpstream(request))

    def follow(self, response_id: str) -> None:
        """Send the client the events of a background response, which a worker stores. The stream may last hours, so the
        exchange frees the memory of the request."""
        self.phase, self.known.builder = Phase(self), None
        self.actions.append(FollowResponse(self.head.owner, response_id))
        self.machine.go(State.FOLLOWING)

    def answer_again(self, manner: Manner, stored: StoredResponse) -> None:
        """Answer with the stored response of an earlier request with the same idempotency key. The answer is a stream
        if this request, not the earlier one, has `stream: true`."""
        body = whole_body(stored.body, stored.output_items)
        if not manner.stream:
            self.answer.whole(body, (REPLAYED,))
        else:
            self.answer.open_followed((REPLAYED,))
            if manner.background:
                self.follow(stored.id)
                return
            self.actions.append(SendBody(replayed(body) + DONE))
        self.finish(stored.status)

    def refuse(self, error: ApiError) -> None:
        """Answer the client with an HTTP error, and end the exchange."""
        self.note_failure(self.failure_of(error))
        self.known.message = error.message
        self.release()
        self.answer.refuse(error, self.head.request_id)
        self.finish("error")

    def refused_upstream(self, said: bytes, sent: Mapping[str, str]) -> ApiError:
        """Return the client's error for an upstream that refused the call. `said` is the body of the upstream's error.

        `map_upstream_answer` describes `sent`.
        """
        call, headers = self.call, self.answer.upstream
        if not call.status:
            return not_answered(call.local_reply, headers, said, self.secrets)
        if not self.route.passthrough and is_about_the_key(call.status, said):
            return own_credentials_refused()
        return map_upstream_answer(call.status, headers, said, self.secrets, sent)

    def note_failure(self, failure: Failure) -> None:
        """Record why the request failed, unless an earlier failure is already recorded."""
        if self.known.failure is None:
            self.known.failure = replace(failure, status=200) if self.answer.head_sent else failure

    def failure_of(self, error: ApiError) -> Failure:
        """Return the failure to log for an error that the client gets."""
        return refusal(error, self.machine.state, self.upstream_name, self.call.status, quoted=self.known.quoted)

    def release(self) -> None:
        """Release the conversation's lock, the idempotency key and the approvals, before the client gets the end of the
        answer."""
        if self.locked or self.claimed:
            self.locked = self.claimed = False
            self.actions.append(ReleaseConversation(self.head.owner, self.known.response_id, self.counts))

    def finish(self, outcome: str) -> None:
        """Release the conversation's lock and the idempotency key, enter the state `DONE`, and append `Finish`."""
        self.release()
        self.machine.go(State.DONE)
        # When the driver cancels the exchange, the cause may become known only later. So the observer itself records
        # the end of a cancelled call.
        if not self.cancelled:
            self.observer.call_ended()
        self.actions.append(Finish(outcome, self.known.usage, self.known.model))


class Phase:
    """The base class of all phases. An instance of this class itself accepts no input and can only end.

    A subclass overrides the methods for the inputs that it accepts. The methods for all other inputs raise
    `ExchangeStateError`.
    """

    def __init__(self, core: ExchangeCore) -> None:
        self.core = core

    def receive_context(self, context: Context) -> None:
        """Receive the stored objects that the exchange requested. Raises `ApiError`, for example for a missing
        object."""
        raise self._unexpected("context")

    def receive_tools(self, prepared: tuple[PreparedTool, ...]) -> None:
        """Receive the prepared hosted tools, with the functions that the model can call. Raises `ApiError`."""
        raise self._unexpected("prepared tools")

    def receive_tool_result(self, result: ToolResult) -> None:
        """Receive the result of a hosted tool call."""
        raise self._unexpected("a tool's result")

    def receive_unclaimed(self, error: StoreError) -> None:
        """Handle a failure to save the claim, which records the next tool calls in the store before they run. None of
        these tool calls has run."""
        raise self._unexpected("a claim")

    def receive_head(self, status: int, headers: Headers) -> None:
        """Receive the head of the upstream's answer."""
        raise self._unexpected("an upstream's head")

    def stop_reading(self) -> None:
        """End the upstream's answer early, because the parser needs no more bytes, or because the answer exceeds a time
        limit."""
        raise self._unexpected("an upstream's body")

    def receive_end(self, error: UpstreamError | None) -> None:
        """Handle the end of the upstream's answer. `error` is the reason why the answer is incomplete or missing, or
        None for a complete answer."""
        raise self._unexpected("an upstream's end")

    def receive_saved(self, error: StoreError | ApiError | None) -> None:
        """Continue after the store has saved the response, or has failed to save it (`error`)."""
        raise self._unexpected("a saved row")

    def reject(self, error: ApiError) -> None:
        """Fail the request. The client gets an HTTP error if it has received no head, and no approved or possibly
        state-changing tool call has run. Otherwise the client gets a failed response."""
        if not self.core.answer.head_sent and not self.core.counts:
            self.core.refuse(error)
        else:
            code, message = as_event_failure(error)
            self.end(Ending("failed", code=code, message=message, error=error))

    def fail(self, error: ApiError) -> None:
        """Fail the request after a failed model call or an exceeded limit."""
        self.reject(error)

    def cancel(self, reason: CancelReason, message: str) -> None:
        """End the exchange without an answer, because the client disconnected or the process stops."""
        self.core.finish("cancelled")

    def end(self, cut: Ending) -> None:
        """End the response immediately with the status and error of `cut`."""
        raise self._unexpected("the end of a response")

    def break_off(self) -> None:
        """Stop reading the answer of the model call, and report only the call's token usage to the observer."""

    def unstored_record(self) -> ResponseRecord | None:
        """Return a finished response with `store: false`, in the form that the store would save. Return None if the
        response is not finished, or if the sidecar stores it."""
        return None

    def _unexpected(self, what: str) -> ExchangeStateError:
        return ExchangeStateError(f"{what} in state {self.core.machine.state.value}: the exchange did not request it")


def refused_for(error: ApiError | RecursionError) -> ApiError:
    """Return the client's error for `error`.

    `RecursionError` means that the request is nested too deeply. Parsing code may raise it even if other code has
    already parsed the same request at a smaller stack depth.
    """
    return (
        error
        if isinstance(error, ApiError)
        else InvalidRequest("The request is nested too deeply.", code="invalid_value")
    )


def whose(failure: Failure, error: UpstreamError) -> Failure:
    """Return the failure with the right party at fault: `unknown` if the client may have caused the error by not
    reading its stream."""
    return replace(failure, fault="unknown") if error.fault is UpstreamFault.HELD else failure
