"""What all kinds of requests have in common while they are served.

Lives here: the face that the exchange delegates to, refusing, ending, asking for a model call, following a background
response. Not here: the kinds (`native_request.py`, `counted_request.py`, `queued_request.py`, `made_response.py`,
`replayed_response.py`), which input may come when (`states.py`).

Invariant: `Finish` comes last and once; what is held is given back before the client hears of the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from antiphon.engine.exchange.answer_readers import AnswerReader
from antiphon.engine.exchange.call_headers import forwarded
from antiphon.engine.exchange.client_answer import Answering
from antiphon.engine.exchange.failure import Failure, refusal
from antiphon.engine.exchange.local_answers import not_answered
from antiphon.engine.exchange.model_routes import ModelRoute
from antiphon.engine.exchange.options import ExchangeOptions
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
from antiphon.engine.ports.observer import UNOBSERVED, Observer
from antiphon.errors import ApiError, ExchangeStateError, InvalidRequest, StoreError
from antiphon.ids import Clock, IdFactory
from antiphon.known_secrets import KnownSecrets, bearer_token
from antiphon.translation.encode import KEEPALIVE
from antiphon.translation.own_credentials import is_about_the_key, own_credentials_refused
from antiphon.translation.upstream_errors import map_upstream_answer
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault
from antiphon.types.views import Manner


class ExchangeCore:
    """What one exchange has, whatever kind of request it serves."""

    def __init__(self, options: ExchangeOptions, new_id: IdFactory, clock: Clock) -> None:
        self.options = options
        self.new_id = new_id
        self.clock = clock
        self.machine = StateMachine()
        self.actions: list[Action] = []
        self.answer = Answering(self.actions)
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
        self.failure: Failure | None = None
        self.fallback = ""
        """Which upstream has answered for another."""

    def note_failure(self, failure: Failure) -> None:
        """Why the request fails; the first cause counts."""
        if self.failure is None:
            self.failure = replace(failure, status=200) if self.answer.head_sent else failure


class ServedRequest:
    """A request of which nothing is known yet, and the base of all kinds.

    An input that this kind of request does not wait for raises `ExchangeStateError`, as one does that the table
    forbids.
    """

    model = ""
    """The model asked for, once it is known."""
    streaming = False
    """Whether the client asked for an event stream of ours."""
    stored = False
    """Whether the response is to be stored."""
    makes_response = False
    """Whether it is for a response that this server makes."""
    needs_drive = False
    """Whether Envoy cannot make the model call: there is more to it than one call and its answer."""
    quoted = True
    """Whether the log may have an upstream's words."""
    local_reply = ""
    """The status of Envoy's own answer, if Envoy answered instead of the upstream."""

    def __init__(self, core: ExchangeCore, head: RequestHead, route: ModelRoute | None = None) -> None:
        self.core = core
        self.head = head
        self.route = route or core.options.route
        self.upstream_status = 0
        """What the upstream has answered; 0 when it was Envoy that did."""
        self.call_bytes = 0
        """The size of the last call's body."""
        self.answered_by = ""
        """Which of several upstreams has answered the last call; empty where there is one alone."""
        self.reader = AnswerReader()

    # What is known of it

    @property
    def response_id(self) -> str:
        """The response's id, once there is one."""
        return ""

    @property
    def unavailable_tools(self) -> tuple[str, ...]:
        """The tools of the request that the model does not see."""
        return ()

    @property
    def unknown(self) -> tuple[str, ...]:
        """What was left out of the request since nobody here knows it."""
        return ()

    @property
    def usage(self) -> Usage | None:
        """Token counts, once they are known."""
        return None

    @property
    def output_bytes(self) -> int:
        """What the response has grown to."""
        return 0

    @property
    def output_items(self) -> bytes:
        """The items that are done, as a JSON array."""
        return b"[]"

    @property
    def events(self) -> int:
        """How many events its stream has so far."""
        return 0

    @property
    def manner(self) -> Manner:
        """How the answer is to come."""
        return Manner()

    @property
    def asked(self) -> str:
        """Which upstream is asked, for the log: of several the one that has answered, once that is known."""
        return self.answered_by or self.route.upstream

    @property
    def secrets(self) -> KnownSecrets:
        """What must not stand in any text of the upstream's: our own keys, and the client's where it has it."""
        secrets = self.core.options.secrets
        return (*secrets, *bearer_token(self.head.header("authorization"))) if self.route.passthrough else secrets

    def unstored_record(self) -> ResponseRecord | None:
        """What a store would keep of a finished response that is not to be stored; None when there is no such."""
        return None

    # What happens to it

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

    def receive_source(self, name: str, tried: int) -> None:
        """Which of several upstreams has answered, and how many were asked; before the answer's head."""
        self.answered_by = self.core.answer.answered_by = name
        if self.route.fell_back(name, tried):
            self.core.fallback = name

    def stop_reading(self) -> None:
        """The reader wants no more of the upstream's answer, or there is no time for more."""
        raise self._unexpected("an upstream's body")

    def receive_end(self, error: UpstreamError | None) -> None:
        """The upstream's answer is over, or was broken off; or none came."""
        raise self._unexpected("an upstream's end")

    def receive_saved(self, error: StoreError | ApiError | None) -> None:
        """The row was written, or could not be."""
        raise self._unexpected("a saved row")

    def receive_followed(self) -> None:
        """The client was sent the stream of a background response, whole or as far as this process follows it."""
        self.finish("queued")

    def receive_silence(self) -> None:
        """Nothing came for a while: a comment for a client whose stream of ours is open."""
        if self.core.answer.streamed and self.core.machine.state is not State.DONE:
            self.core.actions.append(SendBody(KEEPALIVE))

    def reject(self, error: ApiError) -> None:
        """What the request asks for cannot be done."""
        self.refuse(error)

    def fail(self, error: ApiError) -> None:
        """The model call failed, or a limit was reached."""
        self.refuse(error)

    def cancel(self, reason: CancelReason, message: str) -> None:
        """Nobody waits for it any more."""
        self.finish("cancelled")

    def break_off(self) -> None:
        """Its call is not heard any further, and nothing is told of it here but what it has taken."""

    # What it does

    def load(self, wanted: LoadContext) -> None:
        """Ask for what the request refers to."""
        self.core.machine.go(State.CONTEXT)
        self.core.actions.append(wanted)

    def call(self, path: str, body: bytes, *, stream: bool, above: bool = False, native: bool = False) -> None:
        """Ask for a model call."""
        self.core.machine.go(State.CALLING)
        self.reader = AnswerReader()
        route = self.route
        self.upstream_status, self.call_bytes = 0, len(body)
        operation = "native" if native else "responses"
        traced = self.core.observer.call_began(route.upstream, operation, self.model, body)
        headers = forwarded(self.head.headers, route, stream=stream, native=native, traced=traced)
        self.answered_by = ""
        tries = len(route.upstreams)
        request = UpstreamRequest("POST", path, headers, body, self.model, stream, route.upstream, above, tries)
        self.core.actions.append(CallUpstream(request))

    def follow(self, response_id: str) -> None:
        """The client gets what a worker writes."""
        self.core.actions.append(FollowResponse(self.head.owner, response_id))
        self.core.machine.go(State.FOLLOWING)

    def refuse(self, error: ApiError) -> None:
        """Answer with an HTTP error."""
        self.core.note_failure(self.failure_of(error))
        self.release()
        self.core.answer.refuse(error, self.head.request_id)
        self.finish("error")

    def refused_upstream(self, said: bytes, sent: Mapping[str, str]) -> ApiError:
        """What is told of an upstream that refused the call with these words; `sent` as for `map_upstream_answer`."""
        if not self.upstream_status:
            return not_answered(self.local_reply, self.core.answer.upstream, said, self.secrets)
        if not self.route.passthrough and is_about_the_key(self.upstream_status, said):
            return own_credentials_refused()
        return map_upstream_answer(self.upstream_status, self.core.answer.upstream, said, self.secrets, sent)

    def failure_of(self, error: ApiError) -> Failure:
        """The failure behind an error that the client gets."""
        state = self.core.machine.state
        return refusal(error, state, self.asked, self.upstream_status, quoted=self.quoted)

    def release(self) -> None:
        """Nothing will be added to the conversation: others may have it, before the client hears of the end."""
        core = self.core
        if core.locked or core.claimed:
            core.locked = core.claimed = False
            core.actions.append(ReleaseConversation(self.head.owner, self.response_id, core.counts))

    def finish(self, outcome: str) -> None:
        """The end."""
        self.release()
        self.core.machine.go(State.DONE)
        # Why a cancelled call ended may be known only later: its observation says so at its end.
        if not self.core.cancelled:
            self.core.observer.call_ended()
        self.core.actions.append(Finish(outcome, self.usage, self.model))

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
