"""Implements one `POST /v1/responses` as a state machine, without I/O.

This module has the methods that the servers and the runner call, chooses the first phase of a request, and checks its
limits. `states.py` defines the states, of which `docs/reference/exchange.md` has a diagram. `phase.py` lists the other
phases. `engine/running/runner.py` performs the actions that an exchange requests.

No code of an exchange awaits or reads the time. The exchange gets its clock and its source of ids as arguments.

An input that the state does not allow raises `ExchangeStateError`, because such an input is a bug of the server.
Invalid bytes from a client or an upstream never raise an error. The response fails instead.

Invariants: `SendHead` comes once, before any `SendBody`. `Finish` comes once, as the last action. The store saves the
response before the client gets the terminal event. After `Finish` the exchange requests no action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from antiphon.engine.exchange.budget import Hold
from antiphon.engine.exchange.counted_request import CountedRequest
from antiphon.engine.exchange.failure import cancelled, local_fault, refusal
from antiphon.engine.exchange.loaded_request import parse_request, prompt_of
from antiphon.engine.exchange.made_response import MadeResponse
from antiphon.engine.exchange.native_request import NativeRequest
from antiphon.engine.exchange.parsed_request import DeliveryOptions
from antiphon.engine.exchange.phase import (
    COMPACT_PATH,
    COUNT_PATH,
    RESPONSES_PATH,
    ExchangeCore,
    ExchangeOptions,
    Known,
    Phase,
    refused_for,
)
from antiphon.engine.exchange.queued_request import QueuedRequest
from antiphon.engine.exchange.queueing import QueuedResponse, open_headers
from antiphon.engine.exchange.states import FOREVER, Input, Late, State, Watch, too_late
from antiphon.engine.ports.actions import (
    Action,
    CancelReason,
    Context,
    FollowResponse,
    LoadContext,
    ReleaseConversation,
    RequestHead,
    ResponseRecord,
    SendBody,
    Usage,
)
from antiphon.engine.ports.hosted_tools import PreparedTool, ToolResult
from antiphon.engine.ports.jobs import JobRequest
from antiphon.engine.ports.observer import Observer
from antiphon.engine.ports.quotas import Reservation
from antiphon.engine.ports.state import StoredResponse
from antiphon.errors import ApiError, StoreError
from antiphon.ids import Clock, IdFactory
from antiphon.translation.events.encode import KEEPALIVE
from antiphon.translation.events.response_draft import with_fallback
from antiphon.translation.request.body import read_manner, read_model
from antiphon.translation.request.prompt_template import PromptNotLoaded
from antiphon.translation.values import PromptReference, PromptTemplate
from antiphon.types.transport import (
    LOCAL_REPLY,
    TRIED_HEADER,
    UPSTREAM_HEADER,
    Headers,
    UpstreamError,
    header_value,
)

__all__ = ["COMPACT_PATH", "COUNT_PATH", "ExchangeOptions", "ResponseExchange"]

_FLOOD: Final = 256 * 1024
TIMED: Final[dict[State, Late | None]] = {
    State.CALLING: None,
    State.RUNNING: None,
    State.STREAMING: Late.OUTPUT,
    State.COLLECTING: None,
    State.REFUSED: Late.ERROR_BODY,
    State.PASSING: None,
}
"""Maps each state that waits for the upstream or for tools to the state's time limit. None: only the time limit of the
whole response applies. Other modules limit the time of all other states."""
# The states in which this exchange has not begun the response. In `FOLLOWING`, a worker generates the response.
_UNBEGUN: Final = frozenset({State.NEW, State.CONTEXT, State.PREPARING, State.FOLLOWING})
_OVER: Final = frozenset({State.SAVING, State.DONE})
# These are module constants, because the lookup of an enum member is slow and happens for each chunk of a body.
_DATA: Final = Input.DATA
_DONE: Final = State.DONE
_STREAMING: Final = State.STREAMING


class UnreadRequest(Phase):
    """The phase of a request that names a stored prompt, until the prompt is loaded. Only then can the exchange parse
    the request. `path` is the request's path, without its query.
    """

    def __init__(self, core: ExchangeCore, path: str, body: bytes, reference: PromptReference) -> None:
        super().__init__(core)
        core.known.needs_drive = path != RESPONSES_PATH
        self.path = path
        self.body = body
        self._reference = reference

    def begin(self) -> None:
        """Append the action that loads the prompt."""
        self.core.load(LoadContext(self.core.head.owner, None, prompt=self._reference))

    def template(self, context: Context) -> PromptTemplate:
        """Return the loaded prompt. Raises `ApiError` if the prompt does not exist."""
        return prompt_of(self._reference, context)


class ResponseExchange:
    """The state machine of one client request. The server or the runner calls the methods `receive_*` with each input,
    and performs the actions that `next_action` returns."""

    def __init__(self, options: ExchangeOptions, new_id: IdFactory, clock: Clock) -> None:
        self._options = options
        self._core = ExchangeCore(options, new_id, clock)
        self._machine = self._core.machine
        self._actions = self._core.actions
        self._queued: QueuedResponse | None = None
        self._watch = Watch(options.times)
        self._silent = False
        self.generate = True
        """If False, the exchange makes no model call and the response has no output. A WebSocket client requests this
        to prepare a later request (prewarm)."""
        self.error_events = True
        """If False, the exchange omits the `error` event before `response.failed`. A WebSocket client would stop
        reading the response after an `error` event."""
        self.request_bytes = 0
        """The number of bytes in the request's body."""
        self.client_left = False
        """Whether the client disconnected before the end of the request."""
        self.client_is_slow: Callable[[], bool] = bool
        """Returns whether the server has bytes in its send buffer, because the client does not read them."""
        self.hold: Hold | None = None
        """The request's reservation in the process's memory budget. The runner adds the size of loaded objects to this
        reservation."""

    def observe(self, observer: Observer) -> None:
        """Report all later model calls to this observer."""
        self._core.observer = observer
        self._core.answer.reservation = observer.reservation

    # Properties that the servers and the runner read

    @property
    def known(self) -> Known:
        """The facts about the request and its response that are known so far."""
        return self._core.known

    @property
    def state(self) -> State:
        """The exchange's state."""
        return self._machine.state

    @property
    def needs_drive(self) -> bool:
        """Whether the sidecar, not Envoy, must make the model calls. Envoy makes only one call for each request, and
        ends this call when the client disconnects."""
        return self._core.known.needs_drive or self._core.keyed

    @property
    def awaits_prompt(self) -> bool:
        """Whether the exchange waits for the stored prompt that the request names."""
        return self._machine.state is State.CONTEXT and isinstance(self._core.phase, UnreadRequest)

    @property
    def goes_on(self) -> bool:
        """Whether the request continues when its client disconnects, so that a retry with the same idempotency key gets
        the result."""
        return self._core.keyed and self._core.known.makes_response and not self._core.known.manner.background

    @property
    def done(self) -> bool:
        """Whether the exchange requests no further action."""
        # A pending release counts as an action, because the response still holds its lock.
        return self._machine.state is _DONE and not any(isinstance(each, ReleaseConversation) for each in self._actions)

    @property
    def makes_response(self) -> bool:
        """Whether the request creates a response on this server and the exchange has not ended."""
        return self._core.known.makes_response and self.state is not State.DONE

    @property
    def reservation(self) -> Reservation | None:
        """The request's quota reservation. None if the request calls no model, or if no quotas are set."""
        core = self._core
        calls = self.generate and not (self.done or core.known.replayed or isinstance(core.phase, CountedRequest))
        return core.observer.reservation if calls else None

    @property
    def floods(self) -> bool:
        """Whether the upstream sends many bytes without any output. The server then handles other requests first."""
        return self._core.call.reader.idle > _FLOOD

    @property
    def estimated_usage(self) -> Usage | None:
        """The estimated token usage so far: the input tokens of all model calls, and the output tokens from the size of
        the output. None if another process generates the response."""
        known = self._core.known
        if known.builder is None:
            return None
        estimated = Usage.estimated(self._core.call.size, known.output_bytes)
        read = estimated.input_tokens + (known.spent.input_tokens if known.spent is not None else 0)
        return Usage(read, estimated.output_tokens, read + estimated.output_tokens)

    def unstored_record(self) -> ResponseRecord | None:
        """Return a finished response with `store: false`, in the form that the store would save. Return None if the
        response is not finished, or if the sidecar stores it."""
        return self._core.phase.unstored_record()

    def actions(self) -> list[Action]:
        """Remove and return all pending actions, in order."""
        actions = self._actions[:]
        self._actions.clear()
        return actions

    def next_action(self) -> Action | None:
        """Remove and return the first pending action, or return None."""
        return self._actions.pop(0) if self._actions else None

    # Inputs from the client, the runner and the store

    def receive_request(self, head: RequestHead, body: bytes) -> None:
        """Receive the whole HTTP request."""
        self._machine.receive(Input.REQUEST)
        self.request_bytes = len(body)
        self._core.head = head
        path = head.path.partition("?")[0]
        self._begin(path if path in (COMPACT_PATH, COUNT_PATH) else RESPONSES_PATH, body, None)

    def receive_job(self, job: JobRequest, owner: str, response_id: str, last_event: int) -> None:
        """Receive a queued background request, which this process runs as a worker. The response already exists in the
        store, and its stream continues after the event number `last_event` (-1: the stream has no events)."""
        self._queued = QueuedResponse(response_id, job.created_at, last_event + 1)
        try:
            carried = open_headers(self._options.sealer, owner, job.sealed)
        except ApiError as error:
            self._machine.receive(Input.REQUEST)
            self._core.refuse(error)
            return
        headers, sender = (*job.headers, *carried), job.sender(owner)
        head = RequestHead("POST", RESPONSES_PATH, headers, owner, job.request_id, caller=sender)
        self.receive_request(head, bytes(job.body))

    def claim(self) -> None:
        """Record that this request may have reserved an idempotency key. At its end, the exchange then requests the
        release of the key."""
        self._core.claimed = self._core.keyed = True

    def turn_away(self, error: ApiError) -> None:
        """Refuse a request before any of its actions has been performed."""
        core = self._core
        self._machine.receive(Input.TURNED_AWAY)
        self._withdraw()
        core.locked = core.keyed = False
        # The exchange may be in the state `CALLING`, but Antiphon called no upstream.
        core.note_failure(refusal(error, quoted=core.known.quoted))
        core.refuse(error)

    def answer_again(self, stored: StoredResponse) -> None:
        """Answer a repeated request (same idempotency key) with the stored response. The runner has performed no action
        for this request."""
        core, known, phase = self._core, Known(), self._core.phase
        # The stored response may be a background response with a stream.
        known.needs_drive = self.awaits_prompt or core.known.needs_drive
        known.model, known.stored = core.known.model, core.known.stored
        known.response_id, known.replayed = stored.id, True
        manner = read_manner(phase.body) if isinstance(phase, UnreadRequest) else core.known.manner
        self._machine.receive(Input.AGAIN)
        self._withdraw()
        core.locked = core.claimed = core.keyed = False
        core.known, core.phase = known, Phase(core)
        core.answer_again(manner, stored)

    def receive_context(self, context: Context | ApiError) -> None:
        """Receive the result of the action `LoadContext`: the loaded objects, or an error."""
        self._machine.receive(Input.CONTEXT)
        core, phase = self._core, self._core.phase
        try:
            if isinstance(context, ApiError):
                raise context
            if isinstance(phase, UnreadRequest):
                template = phase.template(context)
                core.known, core.phase = Known(), Phase(core)
                self._begin(phase.path, phase.body, template)
            else:
                phase.receive_context(context)
        except (ApiError, RecursionError) as error:
            core.phase.reject(refused_for(error))

    def receive_tools(self, prepared: tuple[PreparedTool, ...] | ApiError) -> None:
        """Receive the result of the action `PrepareTools`: the prepared hosted tools, or an error."""
        self._machine.receive(Input.PREPARED)
        try:
            if isinstance(prepared, ApiError):
                raise prepared
            self._core.phase.receive_tools(prepared)
        except (ApiError, RecursionError) as error:
            self._core.phase.reject(refused_for(error))

    def receive_tool_result(self, result: ToolResult) -> None:
        """Receive the result of one tool call of `RunTools`."""
        self._machine.receive(Input.TOOL)
        self._core.phase.receive_tool_result(result)

    def receive_unclaimed(self, error: StoreError) -> None:
        """Handle a failure to save the claim of `RunTools`. None of its tool calls has run."""
        self._machine.receive(Input.TOOL)
        self._core.phase.receive_unclaimed(error)

    def receive_silence(self) -> None:
        """Handle a period in which the client got no bytes. Every state allows this input.

        If the head of the upstream's answer is late, a streaming client gets the head and the first events of its
        response. A client with an open stream gets a comment. Any other client gets nothing, because the upstream's
        answer may become an error.
        """
        answer, known, state = self._core.answer, self._core.known, self.state
        if state is State.CALLING and known.streaming and known.builder is not None and not answer.head_sent:
            answer.open_stream(known.builder)
        elif answer.streamed and state is not State.DONE:
            self._actions.append(SendBody(KEEPALIVE))

    def receive_time(self, at: float) -> float:
        """Receive the monotonic time `at`. Fail the request if it exceeds a time limit. Every state allows this input.

        Returns the time by which the caller must call this method again.
        """
        watch, machine = self._watch, self._machine
        while (state := machine.state) in TIMED:
            late = watch.look(at, state, TIMED[state], self._core.call.reader.output)
            if late is None:
                return watch.next
            machine.receive(Input.LIMIT)
            if late is Late.ERROR_BODY:
                self._core.phase.stop_reading()
            else:
                self._core.phase.fail(too_late(late, self._options.times))
        return FOREVER

    def receive_too_much(self, error: ApiError) -> None:
        """Fail the response, because its event stream exceeds `limits.drive_stream_bytes`.

        Every state allows this input, but only a wait for the upstream or for tools ends.
        """
        self._machine.receive(Input.LIMIT)
        if self.state in TIMED:
            self._core.phase.fail(error)

    def cancel(self, reason: CancelReason) -> None:
        """End the exchange early, because the client or the upstream disconnected, or because the process stops. Every
        state allows this input."""
        core, state = self._core, self.state
        if state is State.DONE or core.cancelled:
            return
        self._machine.receive(Input.CANCEL)
        core.cancelled = True
        if state is State.SAVING:
            # The response is complete. The client's disconnect does not change the row that is being written.
            return
        ended = cancelled(reason, state, core.upstream_name)
        core.note_failure(ended)
        if state in _UNBEGUN:
            # Remove a pending `FollowResponse`, because the client is disconnected.
            self._actions[:] = [each for each in self._actions if not isinstance(each, FollowResponse)]
            core.finish("cancelled")
        else:
            self._core.phase.cancel(reason, ended.cause)

    def break_off(self) -> None:
        """Stop the exchange but not the response, because another process will run the response again. Report the token
        usage of the current model call so far."""
        if self.state is not State.DONE:
            self._core.phase.break_off()

    # Inputs from the upstream, and the ends of saves and of followed streams

    def receive_upstream_head(self, status: int, headers: Headers) -> None:
        """Receive the status and the headers of the upstream's answer."""
        self._machine.receive(Input.HEAD)
        core = self._core
        core.call.status = status
        if (local := header_value(headers, LOCAL_REPLY)) is not None:
            core.call.status, core.call.local_reply = 0, local
            headers = tuple(pair for pair in headers if pair[0] != LOCAL_REPLY)
        if core.route.several and (name := header_value(headers, UPSTREAM_HEADER)):
            tried = header_value(headers, TRIED_HEADER) or ""
            self._receive_source(name, int(tried) if tried.isdecimal() else 1)
        # The first bytes of an error are no part of an answer.
        self._silent = 200 <= core.call.status < 300
        core.observer.head_came(core.upstream_name, core.call.status)
        if local is not None:
            core.observer.call_ended(local_fault(local).value)
        core.phase.receive_head(status, headers)

    def _receive_source(self, name: str, tried: int) -> None:
        """Record which upstream of a group has answered, and how many upstreams Antiphon called."""
        core, known = self._core, self._core.known
        core.call.answered_by = core.answer.answered_by = name
        if core.route.fell_back(name, tried):
            known.fallback = name
        if known.fallback and known.builder is not None:
            response = known.builder.response
            response.metadata = with_fallback(response.metadata, known.fallback)

    def receive_upstream_data(self, data: bytes) -> None:
        """Receive a chunk of the upstream's body. A chunk may end in the middle of an event."""
        machine, core = self._machine, self._core
        if self._silent:
            self._silent = False
            core.observer.first_data_came()
        # For speed, the exchange checks the state table at a stream's end, not for each chunk.
        if machine.state is not _STREAMING:
            machine.receive(_DATA)
            if machine.state in _OVER:
                return
        if core.call.reader.receive(data):
            machine.receive(_DATA)
            core.observer.call_ended()
            core.phase.stop_reading()

    def receive_upstream_end(self, error: UpstreamError | None = None) -> None:
        """Handle the end of the upstream's answer. `error` is the reason why the answer is incomplete or missing, or
        None for a complete answer."""
        self._machine.receive(Input.END)
        if self.state not in _OVER:
            self._core.observer.call_ended(error.fault.value if error is not None else "")
            self._core.phase.receive_end(error)

    def receive_saved(self, error: StoreError | ApiError | None = None) -> None:
        """Continue after the store has saved the response, or has failed to save it (`error`)."""
        self._machine.receive(Input.SAVED)
        # Saving has released the lock and the key, or has begun to release them.
        self._core.locked = self._core.claimed = False
        self._core.phase.receive_saved(error)

    def receive_followed(self) -> None:
        """Handle the end of the action `FollowResponse`, which sends the stream of a background response to the
        client."""
        self._machine.receive(Input.FOLLOWED)
        self._core.finish("queued")

    def _withdraw(self) -> None:
        """Remove all pending actions. The observer forgets a model call that is one of these actions."""
        self._actions.clear()
        self._core.observer.call_withdrawn()

    # Choosing the phase for a request

    def _begin(self, path: str, body: bytes, prompt: PromptTemplate | None) -> None:
        """Choose the first phase for the request, and begin it. `prompt` is the stored prompt that the request names,
        or None before it is loaded."""
        core = self._core
        try:
            native = self._native(path, body) if prompt is None else None
            if native is not None:
                core.phase = native
                native.begin(body)
            else:
                core.phase = request = self._translated(path, body, prompt)
                request.begin()
        except PromptNotLoaded as needed:
            core.phase = unread = UnreadRequest(core, path, body, needed.reference)
            unread.begin()
        except (ApiError, RecursionError) as error:
            core.phase.reject(refused_for(error))

    def _native(self, path: str, body: bytes) -> NativeRequest | None:
        """Return the phase for a request whose model has a native upstream. Return None for another request."""
        routes = self._options.routes
        # The sidecar answers a prewarm itself, because upstreams do not support prewarms.
        if not self.generate or not routes.has_native:
            return None
        model = read_model(body)
        if model is None or (route := routes.choose(model)).mode != "native":
            return None
        return NativeRequest(self._core, route, model, path)

    def _translated(
        self, path: str, body: bytes, prompt: PromptTemplate | None
    ) -> CountedRequest | QueuedRequest | MadeResponse:
        """Return the phase for a request that the sidecar translates for a chat server. Raises `ApiError` and
        `PromptNotLoaded`."""
        core, delivery = self._core, DeliveryOptions(self.generate, self.error_events)
        parsed = parse_request(core, path, body, delivery=delivery, prompt=prompt, queued=self._queued)
        core.known.output_limit = parsed.request.max_output_tokens
        if path == COUNT_PATH:
            return CountedRequest(core, parsed)
        if path != COMPACT_PATH and parsed.request.background and self._queued is None:
            return QueuedRequest(core, parsed, body)
        return MadeResponse(core, parsed)
