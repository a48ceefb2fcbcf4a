"""Defines the base class of an exchange's phases, and what the phases share: options, facts and state.

Lives here: the methods that take a phase's inputs, and the operations of every phase. A phase can refuse the request,
end the exchange, request a model call, follow a background response, or answer a repeated request. Also: the options of
every exchange, the paths that exchanges serve, and the facts of the request that servers and observers read (`Known`).
Not here: the settings behind the options (`antiphon.config`), the inputs that each state allows (`states.py`). The
phases are in `native_request.py`, `counted_request.py` and `queued_request.py`. The phases of a response that the
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
    """The options that the settings give every exchange.

    `routes` is the routing table of models. `sealer` seals the server's data that a client or a job carries.
    """

    routes: ModelRoutes
    sealer: Sealer
    open_responses_names: bool = False
    reasoning_as: str = "auto"
    limits: LimitSettings = field(default_factory=LimitSettings)
    tool_limits: ToolSettings = field(default_factory=ToolSettings)
    times: TimeoutSettings = field(default_factory=TimeoutSettings)
    secrets: KnownSecrets = ()
    """Secrets that the sidecar removes from every upstream text before a client sees the text."""
    several_owners: bool = True
    """Whether the server has several owners. If so, a client may not use another owner's objects at a native
    upstream."""
    seal_credentials: bool = False
    """Whether a queued job stores the client credentials that it needs, encrypted. If False, the sidecar
    refuses a background request that needs client credentials."""
    never_stored: frozenset[str] = frozenset()
    """The owners whose responses the sidecar never stores, even if the request sets `store`. `*` means all owners."""
    strict: bool = False
    """Whether the sidecar refuses a request with unknown fields. If False, the sidecar ignores unknown fields."""
    tool_types: frozenset[str] = frozenset()
    """The types of hosted tools that the sidecar runs."""

    def stores(self, owner: str) -> bool:
        """Whether the sidecar may store this owner's responses."""
        return self.never_stored.isdisjoint((owner, "*"))


class Known:
    """The known facts of a request and its response, for the observers and drivers of the exchange.

    Each phase sets the attributes for the facts that it finds. Until then, each attribute has its default value.
    """

    def __init__(self) -> None:
        self.model = ""
        """The model that the request names."""
        self.response_id = ""
        self.previous_id = ""
        """The `previous_response_id` of the request, or empty."""
        self.conversation_id = ""
        """The id of the conversation that the request names, or empty."""
        self.message = ""
        """The message of the HTTP error that the client gets, or empty."""
        self.streaming = False
        """Whether the client requested an event stream that the sidecar generates. False for a native upstream's
        stream."""
        self.stored = False
        """Whether the sidecar will store the response."""
        self.quoted = True
        """Whether the log may quote an upstream's error."""
        self.makes_response = False
        """Whether the request creates a response on this server. False for a token count and for a native request."""
        self.needs_drive = False
        """Whether the sidecar must make the model calls itself. In relay mode, Envoy makes the model call, but only for
        a request that needs exactly one model call."""
        self.replayed = False
        """Whether the client gets the stored response of an earlier request with the same idempotency key."""
        self.queued = False
        """Whether this request has stored a job. A worker runs the job, even if the client disconnects."""
        self.loaded_bytes = 0
        """The bytes of history and files for which the request reserves tokens in its quotas. 0 without quotas."""
        self.output_limit: int | None = None
        """The maximum of output tokens that the request sets."""
        self.manner = Manner()
        """How the client wants the answer: streamed or whole, in the background or not."""
        self.tolerance: Tolerance | None = None
        self.builder: ResponseBuilder | None = None
        """The builder of the response."""
        self.spent: UsageObject | None = None
        """The token usage of the model turns before the current one."""
        self.failure: Failure | None = None
        """The reason for the request's failure, for the log. The exchange records only the first failure."""
        self.fallback = ""
        """The name of the upstream that answered as a fallback, or empty."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """The request's unknown fields, which the sidecar ignores."""
        return tuple(self.tolerance.names) if self.tolerance is not None else ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """The request's unknown fields, and the known tools that this server does not run."""
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
    """A call of an upstream, and the facts of its answer so far."""

    __slots__ = ("answered_by", "local_reply", "reader", "size", "status")

    def __init__(self, size: int) -> None:
        self.size = size
        """The size of the call's body."""
        self.reader = AnswerReader()
        self.status = 0
        """The HTTP status of the upstream's answer. 0: no answer yet, or Envoy answered instead."""
        self.local_reply = ""
        """The value of the header with which Envoy marks its own answer. Empty if the upstream answered."""
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
        """The current model call. Between two calls, the previous model call."""
        self.known = Known()
        self.phase = Phase(self)
        """The phase that takes the next input."""
        self.observer: Observer = UNOBSERVED
        """The observer that records the model calls."""
        self.cancelled = False
        self.locked = False
        """Whether the response holds the lock of its conversation."""
        self.claimed = False
        """Whether the response may hold an idempotency key, or approvals."""
        self.keyed = False
        """Whether the request holds an idempotency key. Such a request continues when its client disconnects."""
        self.counts = False
        """Whether the idempotency key and the approvals stay used when the response ends. True if the response
        succeeded, or if its tool calls may have changed external state."""

    @property
    def upstream_name(self) -> str:
        """The name of the called upstream, for the log. If the route has several upstreams, the result is the upstream
        that answered, as soon as its name is known."""
        return self.call.answered_by or self.route.upstream

    @property
    def secrets(self) -> KnownSecrets:
        """Secrets that the sidecar removes from the upstream's texts: the server's keys, and the client's key if the
        sidecar forwards it."""
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
        """Send the client the events that a worker writes. The stream may last hours, so the exchange frees the
        request's memory."""
        self.phase, self.known.builder = Phase(self), None
        self.actions.append(FollowResponse(self.head.owner, response_id))
        self.machine.go(State.FOLLOWING)

    def answer_again(self, manner: Manner, stored: StoredResponse) -> None:
        """Send the stored response of an earlier request with the same idempotency key. This request decides whether
        the answer is a stream or one body. The exchange stores nothing."""
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
        """Answer with an HTTP error."""
        self.note_failure(self.failure_of(error))
        self.known.message = error.message
        self.release()
        self.answer.refuse(error, self.head.request_id)
        self.finish("error")

    def refused_upstream(self, said: bytes, sent: Mapping[str, str]) -> ApiError:
        """The client's error for an upstream that refused the call. `said` is the upstream's body.

        For `sent`, see `map_upstream_answer`.
        """
        call, headers = self.call, self.answer.upstream
        if not call.status:
            return not_answered(call.local_reply, headers, said, self.secrets)
        if not self.route.passthrough and is_about_the_key(call.status, said):
            return own_credentials_refused()
        return map_upstream_answer(call.status, headers, said, self.secrets, sent)

    def note_failure(self, failure: Failure) -> None:
        """Record the reason for the request's failure. The method ignores later failures."""
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

    An input that a phase does not accept raises `ExchangeStateError`. An input that the state table forbids raises the
    same error.
    """

    def __init__(self, core: ExchangeCore) -> None:
        self.core = core

    def receive_context(self, context: Context) -> None:
        """Receive the loaded objects. Raises `ApiError`."""
        raise self._unexpected("context")

    def receive_tools(self, prepared: tuple[PreparedTool, ...]) -> None:
        """Receive the hosted tools' functions for the model. Raises `ApiError`."""
        raise self._unexpected("prepared tools")

    def receive_tool_result(self, result: ToolResult) -> None:
        """Receive the result of a hosted tool call."""
        raise self._unexpected("a tool's result")

    def receive_unclaimed(self, error: StoreError) -> None:
        """Handle the store's error if the store could not save the claim, a record of the tool calls that are about to
        run. The driver has sent none of these calls."""
        raise self._unexpected("a claim")

    def receive_head(self, status: int, headers: Headers) -> None:
        """Receive the head of the upstream's answer."""
        raise self._unexpected("an upstream's head")

    def stop_reading(self) -> None:
        """End the upstream's answer early, because the reader needs no more bytes, or because the answer exceeds a time
        limit."""
        raise self._unexpected("an upstream's body")

    def receive_end(self, error: UpstreamError | None) -> None:
        """Handle the end of the upstream's answer. `error`: why the answer is incomplete or missing."""
        raise self._unexpected("an upstream's end")

    def receive_saved(self, error: StoreError | ApiError | None) -> None:
        """Handle the outcome of the save."""
        raise self._unexpected("a saved row")

    def reject(self, error: ApiError) -> None:
        """Fail the request. The client gets an HTTP error if neither the head of its response nor a tool call was sent,
        otherwise a failed response."""
        if not self.core.answer.head_sent and not self.core.counts:
            self.core.refuse(error)
        else:
            code, message = as_event_failure(error)
            self.end(Ending("failed", code=code, message=message, error=error))

    def fail(self, error: ApiError) -> None:
        """Handle a failed model call, or an exceeded limit."""
        self.reject(error)

    def cancel(self, reason: CancelReason, message: str) -> None:
        """End without an answer, because the client disconnected or the process stops."""
        self.core.finish("cancelled")

    def end(self, cut: Ending) -> None:
        """End the response immediately with the status and error of `cut`."""
        raise self._unexpected("the end of a response")

    def break_off(self) -> None:
        """Stop reading the answer of the model call, and report only the call's token usage to the observer."""

    def unstored_record(self) -> ResponseRecord | None:
        """The record of a finished response that the sidecar will not store. The result is None if the response is not
        finished, or if the sidecar will store it."""
        return None

    def _unexpected(self, what: str) -> ExchangeStateError:
        return ExchangeStateError(f"{what} in state {self.core.machine.state.value}: the exchange did not request it")


def refused_for(error: ApiError | RecursionError) -> ApiError:
    """The client's error for this exception.

    The allowed nesting depth depends on the code that reads the request. Code that parses the request deeper in the
    call stack may raise `RecursionError` for a request that earlier code could parse.
    """
    return (
        error
        if isinstance(error, ApiError)
        else InvalidRequest("The request is nested too deeply.", code="invalid_value")
    )


def whose(failure: Failure, error: UpstreamError) -> Failure:
    """The failure, with the fault `unknown` if the client may have caused the error by not reading its stream."""
    return replace(failure, fault="unknown") if error.fault is UpstreamFault.HELD else failure
