"""The base class of an exchange's phases, and the state they share.

Lives here: the inputs that a phase may wait for, refusing, ending, asking for a model call, following a background
response; what doors and observers may know of the request (`Known`). Not here: the phases (`native_request.py`,
`counted_request.py`, `queued_request.py`, and of a response that is made here `made_response.py`,
`running_tools.py`, `response_end.py`), which input may come when (`states.py`).

Invariant: `Finish` comes last and once; what is held is given back before the client hears of the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from antiphon.engine.exchange.answer_readers import AnswerReader
from antiphon.engine.exchange.call_headers import forwarded
from antiphon.engine.exchange.client_answer import Answering
from antiphon.engine.exchange.failure import Failure, not_answered, refusal
from antiphon.engine.exchange.options import RESPONSES_PATH, ExchangeOptions
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
    UpstreamRequest,
    Usage,
)
from antiphon.engine.ports.hosted_tools import PreparedTool, ToolResult
from antiphon.engine.ports.observer import UNOBSERVED, Observer
from antiphon.errors import ApiError, ExchangeStateError, InvalidRequest, StoreError
from antiphon.ids import Clock, IdFactory
from antiphon.redaction import KnownSecrets, bearer_token
from antiphon.translation.answer.upstream_errors import (
    as_event_failure,
    is_about_the_key,
    map_upstream_answer,
    own_credentials_refused,
)
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.token_usage import add_usage
from antiphon.translation.values import Ending
from antiphon.types.json import encode
from antiphon.types.response import UsageObject
from antiphon.types.tolerance import Tolerance
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault
from antiphon.types.views import Manner


class Known:
    """What is known of a request and of its response so far, for whoever observes or performs the exchange. Each phase
    writes what it finds out; until then a value is that of a request of which nothing will be known."""

    def __init__(self) -> None:
        self.model = ""
        """The model asked for."""
        self.response_id = ""
        self.streaming = False
        """Whether the client asked for an event stream of ours."""
        self.stored = False
        """Whether the response is to be stored."""
        self.quoted = True
        """Whether the log may have an upstream's words."""
        self.makes_response = False
        """Whether it is for a response that this server makes."""
        self.needs_drive = False
        """Whether Envoy cannot make the model call: there is more to it than one call and its answer."""
        self.replayed = False
        """Whether its client is given what the same request made before."""
        self.manner = Manner()
        """How the answer is to come."""
        self.tolerance: Tolerance | None = None
        self.builder: ResponseBuilder | None = None
        """Where the response grows."""
        self.spent: UsageObject | None = None
        """What the model's turns before the one under way have used."""
        self.failure: Failure | None = None
        """Why it failed, for the log; the first cause counts."""
        self.fallback = ""
        """Which upstream has answered for another."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """What was left out of the request since nobody here knows it."""
        return tuple(self.tolerance.names) if self.tolerance is not None else ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """The unknown parts of the request, and the known tools that do not run here."""
        tools = self.tolerance.tools if self.tolerance is not None else ()
        return tuple(dict.fromkeys((*self.unknown, *tools)))

    @property
    def usage(self) -> Usage | None:
        """Token counts of all model calls, once they are known."""
        used = self.builder.response.usage if self.builder is not None else None
        if self.spent is not None:
            used = add_usage(self.spent, used)
        return Usage.of(used) if used is not None else None

    @property
    def output_bytes(self) -> int:
        """What the response has grown to."""
        return self.builder.draft.size if self.builder is not None else 0

    @property
    def output_items(self) -> bytes:
        """The items that are done, as a JSON array."""
        return encode(self.builder.draft.output) if self.builder is not None else b"[]"

    @property
    def events(self) -> int:
        """How many events its stream has so far."""
        return self.builder.draft.number if self.builder is not None else 0


class ModelCall:
    """A call of an upstream, and what is known of its answer."""

    __slots__ = ("answered_by", "local_reply", "reader", "size", "status")

    def __init__(self, size: int) -> None:
        self.size = size
        """The size of the call's body."""
        self.reader = AnswerReader()
        self.status = 0
        """What the upstream has answered; 0 when it was Envoy that did."""
        self.local_reply = ""
        """The status of Envoy's own answer, if Envoy answered instead of the upstream."""
        self.answered_by = ""
        """Which of several upstreams has answered; empty where there is one alone."""


class ExchangeCore:
    """What one exchange has, whatever it is at."""

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
        """The model call under way, or the last."""
        self.known = Known()
        self.phase = Phase(self)
        """What the next input is for."""
        self.observer: Observer = UNOBSERVED
        """Who is told of model calls."""
        self.cancelled = False
        self.locked = False
        """Whether the response's conversation is locked for it."""
        self.claimed = False
        """Whether the response may hold an idempotency key, or approvals."""
        self.keyed = False
        """Whether it holds an idempotency key, and so continues when its client disconnects."""
        self.counts = False
        """Whether its key and approvals stay used at the end: its calls may have changed something, or it succeeded."""

    @property
    def upstream_name(self) -> str:
        """Which upstream is asked, for the log: of several the one that has answered, once that is known."""
        return self.call.answered_by or self.route.upstream

    @property
    def secrets(self) -> KnownSecrets:
        """What must not stand in any text of the upstream's: our own keys, and the client's where it has it."""
        secrets = self.options.secrets
        return (*secrets, *bearer_token(self.head.header("authorization"))) if self.route.passthrough else secrets

    def load(self, wanted: LoadContext) -> None:
        """Ask for what the request refers to."""
        self.machine.go(State.CONTEXT)
        self.actions.append(wanted)

    def ask_upstream(self, path: str, body: bytes, *, stream: bool, above: bool = False, native: bool = False) -> None:
        """Ask for a model call."""
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
        """The client gets what a worker writes. It may take hours: nothing is kept of what the request brought."""
        self.phase, self.known.builder = Phase(self), None
        self.actions.append(FollowResponse(self.head.owner, response_id))
        self.machine.go(State.FOLLOWING)

    def refuse(self, error: ApiError) -> None:
        """Answer with an HTTP error."""
        self.note_failure(self.failure_of(error))
        self.release()
        self.answer.refuse(error, self.head.request_id)
        self.finish("error")

    def refused_upstream(self, said: bytes, sent: Mapping[str, str]) -> ApiError:
        """What is told of an upstream that refused the call with these words; `sent` as for `map_upstream_answer`."""
        call, headers = self.call, self.answer.upstream
        if not call.status:
            return not_answered(call.local_reply, headers, said, self.secrets)
        if not self.route.passthrough and is_about_the_key(call.status, said):
            return own_credentials_refused()
        return map_upstream_answer(call.status, headers, said, self.secrets, sent)

    def note_failure(self, failure: Failure) -> None:
        """Why the request fails; the first cause counts."""
        if self.known.failure is None:
            self.known.failure = replace(failure, status=200) if self.answer.head_sent else failure

    def failure_of(self, error: ApiError) -> Failure:
        """The failure behind an error that the client gets."""
        return refusal(error, self.machine.state, self.upstream_name, self.call.status, quoted=self.known.quoted)

    def release(self) -> None:
        """Nothing will be added to the conversation: others may have it, before the client hears of the end."""
        if self.locked or self.claimed:
            self.locked = self.claimed = False
            self.actions.append(ReleaseConversation(self.head.owner, self.known.response_id, self.counts))

    def finish(self, outcome: str) -> None:
        """The end."""
        self.release()
        self.machine.go(State.DONE)
        # Why a cancelled call ended may be known only later: its observation says so at its end.
        if not self.cancelled:
            self.observer.call_ended()
        self.actions.append(Finish(outcome, self.known.usage, self.known.model))


class Phase:
    """A phase of which nothing is expected any more but its end, and the base of all others.

    An input that a phase does not wait for raises `ExchangeStateError`, as one does that the table forbids.
    """

    def __init__(self, core: ExchangeCore) -> None:
        self.core = core

    def receive_context(self, context: Context) -> None:
        """What was to be loaded. Raises `ApiError`."""
        raise self._unexpected("context")

    def receive_tools(self, prepared: tuple[PreparedTool, ...]) -> None:
        """What the model is to be shown of the tools. Raises `ApiError`."""
        raise self._unexpected("prepared tools")

    def receive_tool_result(self, result: ToolResult) -> None:
        """A call has ended."""
        raise self._unexpected("a tool's result")

    def receive_unclaimed(self, error: StoreError) -> None:
        """The store could not claim the calls; they are not sent."""
        raise self._unexpected("a claim")

    def receive_head(self, status: int, headers: Headers) -> None:
        """The upstream's answer begins."""
        raise self._unexpected("an upstream's head")

    def stop_reading(self) -> None:
        """The reader wants no more of the upstream's answer, or there is no time for more."""
        raise self._unexpected("an upstream's body")

    def receive_end(self, error: UpstreamError | None) -> None:
        """The upstream's answer is over, or was broken off; or none came."""
        raise self._unexpected("an upstream's end")

    def receive_saved(self, error: StoreError | ApiError | None) -> None:
        """The row was written, or could not be."""
        raise self._unexpected("a saved row")

    def reject(self, error: ApiError) -> None:
        """What is asked for cannot be done: an HTTP error while that is possible, else the failed path."""
        if not self.core.answer.head_sent and not self.core.counts:
            self.core.refuse(error)
        else:
            code, message = as_event_failure(error)
            self.end(Ending("failed", code=code, message=message, error=error))

    def fail(self, error: ApiError) -> None:
        """The model call failed, or a limit was reached."""
        self.reject(error)

    def cancel(self, reason: CancelReason, message: str) -> None:
        """Nobody waits for it any more."""
        self.core.finish("cancelled")

    def end(self, cut: Ending) -> None:
        """The response that is made ends now, like this."""
        raise self._unexpected("the end of a response")

    def break_off(self) -> None:
        """Its call is not heard any further, and nothing is told of it here but what it has taken."""

    def unstored_record(self) -> ResponseRecord | None:
        """What a store would keep of a finished response that is not to be stored; None when there is no such."""
        return None

    def _unexpected(self, what: str) -> ExchangeStateError:
        return ExchangeStateError(f"{what} in state {self.core.machine.state.value}: nobody asked for it")


def refused_for(error: ApiError | RecursionError) -> ApiError:
    """What a request is refused for. How deep one may be nested depends on who reads it: what one reader could take in
    may be too deep for the next, which has less of the stack left."""
    return (
        error
        if isinstance(error, ApiError)
        else InvalidRequest("The request is nested too deeply.", code="invalid_value")
    )


def whose(failure: Failure, error: UpstreamError) -> Failure:
    """The failure, as nobody's where nobody knows whose it is."""
    return replace(failure, fault="unknown") if error.fault is UpstreamFault.HELD else failure
