"""The state machine of one `POST /v1/responses`, without I/O.

Lives here: the face for doors and the runner, what kind of request it is, limits; a request whose prompt is not loaded
yet, and the answer to one that was served before. Not here: the states (`states.py`; `docs/reference/exchange.md` has
the picture), what is done in each other phase (`phase.py` and the phases it names), translation (`translation/`),
performing actions (`engine/running/runner.py`), and any transport. No await, no clock but the one given, no randomness
but the ids given.

An input that the state does not allow raises `ExchangeStateError` (a door's bug); bad bytes never raise, they become
the failed path.

Invariants: `SendHead` comes once, before any `SendBody`; `Finish` comes last and once; the response is saved before
its terminal event is sent; after `Finish` nothing is asked for any more.
"""

from __future__ import annotations

from typing import Final

from antiphon.engine.exchange.budget import Hold
from antiphon.engine.exchange.client_answer import REPLAYED
from antiphon.engine.exchange.counted_request import CountedRequest
from antiphon.engine.exchange.failure import cancelled, local_fault
from antiphon.engine.exchange.loaded_request import parse_request, prompt_of
from antiphon.engine.exchange.made_response import MadeResponse
from antiphon.engine.exchange.native_request import NativeRequest
from antiphon.engine.exchange.options import COMPACT_PATH, COUNT_PATH, RESPONSES_PATH, ExchangeOptions
from antiphon.engine.exchange.parsed_request import DeliveryOptions
from antiphon.engine.exchange.phase import ExchangeCore, Known, Phase, refused_for
from antiphon.engine.exchange.queued_request import QueuedRequest
from antiphon.engine.exchange.queueing import QueuedResponse, open_headers
from antiphon.engine.exchange.states import Input, State
from antiphon.engine.exchange.time_limits import FOREVER, Late, Watch, too_late
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
)
from antiphon.engine.ports.hosted_tools import PreparedTool, ToolResult
from antiphon.engine.ports.jobs import JobRequest
from antiphon.engine.ports.observer import Observer
from antiphon.engine.ports.state import StoredResponse
from antiphon.engine.ports.stored_bodies import whole_body
from antiphon.errors import ApiError, StoreError
from antiphon.ids import Clock, IdFactory
from antiphon.translation.events.encode import DONE, KEEPALIVE
from antiphon.translation.events.initial_response import with_fallback
from antiphon.translation.events.replay import replayed
from antiphon.translation.request.body import read_manner, read_model
from antiphon.translation.request.prompt_template import PromptNotLoaded
from antiphon.translation.values import PromptReference, PromptTemplate
from antiphon.types.transport import (
    LOCAL_REPLY,
    TRIED_HEADER,
    UPSTREAM_HEADER,
    Headers,
    UpstreamError,
    UpstreamFault,
    header_value,
)
from antiphon.types.views import Manner

__all__ = ["COMPACT_PATH", "COUNT_PATH", "ExchangeOptions", "ResponseExchange"]

_FLOOD: Final = 256 * 1024
# Where somebody else must act, and which limit holds there beside the whole response's. (Loading, saving and following
# have limits of their own.)
_TIMED: Final[dict[State, Late | None]] = {
    State.CALLING: None,
    State.RUNNING: None,
    State.STREAMING: Late.OUTPUT,
    State.COLLECTING: None,
    State.REFUSED: Late.ERROR_BODY,
    State.PASSING: None,
}
# Nothing of a response is there yet, or it is somebody else's.
_UNBEGUN: Final = frozenset({State.NEW, State.CONTEXT, State.PREPARING, State.FOLLOWING})
_OVER: Final = frozenset({State.SAVING, State.DONE})
# Asked for with each part of a body; a member of an enumeration is looked for in its class every time.
_DATA: Final = Input.DATA
_DONE: Final = State.DONE
_STREAMING: Final = State.STREAMING


class UnreadRequest(Phase):
    """A request that names a prompt, which has to be loaded before anything else of it can be read: only its bytes and
    the prompt's name are known. `path` is the one it came by, without its query."""

    def __init__(self, core: ExchangeCore, path: str, body: bytes, reference: PromptReference) -> None:
        super().__init__(core)
        core.known.needs_drive = path != RESPONSES_PATH
        self.path = path
        self.body = body
        self._reference = reference

    def begin(self) -> None:
        """Ask for the prompt."""
        self.core.load(LoadContext(self.core.head.owner, None, prompt=self._reference))

    def template(self, context: Context) -> PromptTemplate:
        """The prompt. Raises `ApiError` when there is none."""
        return prompt_of(self._reference, context)


class ResponseExchange:
    """One client request. Doors call `receive_*` and perform what `next_action` gives, in order."""

    def __init__(self, options: ExchangeOptions, new_id: IdFactory, clock: Clock) -> None:
        self._options = options
        self._core = ExchangeCore(options, new_id, clock)
        self._machine = self._core.machine
        self._actions = self._core.actions
        self._queued: QueuedResponse | None = None
        self._watch = Watch(options.times)
        self._silent = False
        self.generate = True
        """False: everything but the model call (a WebSocket's prewarm): the answer is complete and empty at once."""
        self.error_events = True
        """False: `response.failed` comes without the `error` event before it (which ends a turn on a WebSocket)."""
        self.request_bytes = 0
        """The size of the request's body."""
        self.hold: Hold | None = None
        """What the request holds of its process's memory; whoever loads something for it adds to that."""

    def observe(self, observer: Observer) -> None:
        """Tell this one of all model calls from now on."""
        self._core.observer = observer

    # What doors and the runner read

    @property
    def known(self) -> Known:
        """What is known of the request and its response."""
        return self._core.known

    @property
    def state(self) -> State:
        """Where it is."""
        return self._machine.state

    @property
    def needs_drive(self) -> bool:
        """Whether Envoy cannot make this request's model call: the request may need more than one call, or continues
        without its client."""
        return self._core.known.needs_drive or self._core.keyed

    @property
    def awaits_prompt(self) -> bool:
        """Whether the request cannot be read before its prompt was loaded."""
        return self._machine.state is State.CONTEXT and isinstance(self._core.phase, UnreadRequest)

    @property
    def goes_on(self) -> bool:
        """Whether it continues when its client disconnects, so that a retry with its key gets the result."""
        return self._core.keyed and self._core.known.makes_response and not self._core.known.manner.background

    @property
    def done(self) -> bool:
        """Whether nothing more will be asked for."""
        # A lock that is still to be given back is more than nothing, although the client has all it gets.
        return self._machine.state is _DONE and not any(isinstance(each, ReleaseConversation) for each in self._actions)

    @property
    def makes_response(self) -> bool:
        """Whether the request, which was read, is for a response that this server makes."""
        return self._core.known.makes_response and self.state is not State.DONE

    @property
    def floods(self) -> bool:
        """Whether the upstream sends a lot without any output: others come first, until that is ended."""
        return self._core.call.reader.idle > _FLOOD

    def unstored_record(self) -> ResponseRecord | None:
        """What a store would keep of a finished response that is not to be stored; None when there is no such."""
        return self._core.phase.unstored_record()

    def actions(self) -> list[Action]:
        """What is to be done now, in order."""
        actions = self._actions[:]
        self._actions.clear()
        return actions

    def next_action(self) -> Action | None:
        """The first thing to be done now. What is not taken stays: whoever takes over finds it."""
        return self._actions.pop(0) if self._actions else None

    # The client's side

    def receive_request(self, head: RequestHead, body: bytes) -> None:
        """The whole request."""
        self._machine.receive(Input.REQUEST)
        self.request_bytes = len(body)
        self._core.head = head
        path = head.path.partition("?")[0]
        self._begin(path if path in (COMPACT_PATH, COUNT_PATH) else RESPONSES_PATH, body, None)

    def receive_job(self, job: JobRequest, owner: str, response_id: str, last_event: int) -> None:
        """A request that was queued, to be run now: like `receive_request`, for the response there is already.

        Its stream goes on behind the event number `last_event` (-1 when there is none).
        """
        self._queued = QueuedResponse(response_id, job.created_at, last_event + 1)
        try:
            carried = open_headers(self._options.sealer, owner, job.sealed)
        except ApiError as error:
            self._machine.receive(Input.REQUEST)
            self._core.refuse(error)
            return
        headers = (*job.headers, *carried)
        self.receive_request(RequestHead("POST", RESPONSES_PATH, headers, owner, job.request_id), bytes(job.body))

    def claim(self) -> None:
        """The response may hold an idempotency key from now on, and asks for it to be given back at its end."""
        self._core.claimed = self._core.keyed = True

    def turn_away(self, error: ApiError) -> None:
        """Refuse a request that was just received, before anything was done for it."""
        self._machine.receive(Input.TURNED_AWAY)
        self._actions.clear()
        self._core.locked = self._core.keyed = False
        self._core.refuse(error)

    def answer_again(self, stored: StoredResponse) -> None:
        """The same request was served before: its client gets what was stored then. Nothing was done for it yet; one
        whose prompt was not loaded has not even been read, and need not be."""
        core, known, phase = self._core, Known(), self._core.phase
        # What is given again may be a background response's stream, whatever was read of the request.
        known.needs_drive = self.awaits_prompt or core.known.needs_drive
        known.model, known.stored = core.known.model, core.known.stored
        known.response_id, known.replayed = stored.id, True
        manner = read_manner(phase.body) if isinstance(phase, UnreadRequest) else core.known.manner
        self._machine.receive(Input.AGAIN)
        self._actions.clear()
        core.locked = core.claimed = core.keyed = False
        core.known, core.phase = known, Phase(core)
        _answer_with(core, manner, stored)

    def receive_context(self, context: Context | ApiError) -> None:
        """What `LoadContext` asked for, or why it could not be loaded."""
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
        """What the model is to be shown of the tools that run here, or why one cannot be used."""
        self._machine.receive(Input.PREPARED)
        try:
            if isinstance(prepared, ApiError):
                raise prepared
            self._core.phase.receive_tools(prepared)
        except (ApiError, RecursionError) as error:
            self._core.phase.reject(refused_for(error))

    def receive_tool_result(self, result: ToolResult) -> None:
        """One of the calls of `RunTools` has ended."""
        self._machine.receive(Input.TOOL)
        self._core.phase.receive_tool_result(result)

    def receive_unclaimed(self, error: StoreError) -> None:
        """The store could not claim the calls of `RunTools`: none was sent."""
        self._machine.receive(Input.TOOL)
        self._core.phase.receive_unclaimed(error)

    def receive_silence(self) -> None:
        """Nothing came for a while: allowed in every state.

        A streaming client whose upstream's head is late gets its head and first events now; one whose stream is open
        gets a comment. Else nothing goes out: what the upstream is saying may become an error, with a length.
        """
        answer, known, state = self._core.answer, self._core.known, self.state
        if state is State.CALLING and known.streaming and known.builder is not None and not answer.head_sent:
            answer.open_stream(known.builder)
        elif answer.streamed and state is not State.DONE:
            self._actions.append(SendBody(KEEPALIVE))

    def receive_time(self, at: float) -> float:
        """What time it is, by any steady clock; allowed in every state. What has taken too long is ended.

        Returns when the time is to be told again, at the latest."""
        watch, machine = self._watch, self._machine
        while (state := machine.state) in _TIMED:
            late = watch.look(at, state, _TIMED[state], self._core.call.reader.output)
            if late is None:
                return watch.next
            machine.receive(Input.LIMIT)
            if late is Late.ERROR_BODY:
                self._core.phase.stop_reading()
            else:
                self._core.phase.fail(too_late(late, self._options.times))
        return FOREVER

    def receive_too_much(self, error: ApiError) -> None:
        """The client's stream has grown too large for whoever carries it; allowed in every state, like the time, and it
        ends what the time ends."""
        self._machine.receive(Input.LIMIT)
        if self.state in _TIMED:
            self._core.phase.fail(error)

    def cancel(self, reason: CancelReason) -> None:
        """The client or the upstream is gone, or the process must end; allowed in every state."""
        core, state = self._core, self.state
        if state is State.DONE or core.cancelled:
            return
        self._machine.receive(Input.CANCEL)
        core.cancelled = True
        if state is State.SAVING:
            # Everything was received: the row that is being written is the truth.
            return
        ended = cancelled(reason, state, core.upstream_name)
        core.note_failure(ended)
        if state in _UNBEGUN:
            # Whoever left follows nothing any more, not even what a door had no time to begin with.
            self._actions[:] = [each for each in self._actions if not isinstance(each, FollowResponse)]
            core.finish("cancelled")
        else:
            self._core.phase.cancel(reason, ended.cause)

    def break_off(self) -> None:
        """It is not gone on with here, and ends elsewhere: what its call has taken so far is told."""
        if self.state is not State.DONE:
            self._core.phase.break_off()

    # The upstream's side

    def receive_upstream_head(self, status: int, headers: Headers) -> None:
        """The upstream's status and headers."""
        self._machine.receive(Input.HEAD)
        core = self._core
        core.call.status = status
        if (local := header_value(headers, LOCAL_REPLY)) is not None:
            core.call.status, core.call.local_reply = 0, local
            headers = tuple(pair for pair in headers if pair[0] != LOCAL_REPLY)
        if core.route.several and (name := header_value(headers, UPSTREAM_HEADER)):
            tried = header_value(headers, TRIED_HEADER) or ""
            self._receive_source(name, int(tried) if tried.isdecimal() else 1)
        self._silent = True
        core.observer.head_came(core.upstream_name, core.call.status)
        if local is not None and (fault := local_fault(local)) is UpstreamFault.CUT:
            core.observer.call_ended(fault.value)
        core.phase.receive_head(status, headers)

    def _receive_source(self, name: str, tried: int) -> None:
        """Which of several upstreams has answered, and how many were asked."""
        core, known = self._core, self._core.known
        core.call.answered_by = core.answer.answered_by = name
        if core.route.fell_back(name, tried):
            known.fallback = name
        if known.fallback and known.builder is not None:
            response = known.builder.response
            response.metadata = with_fallback(response.metadata, known.fallback)

    def receive_upstream_data(self, data: bytes) -> None:
        """Body bytes, in any split."""
        machine, core = self._machine, self._core
        if self._silent:
            self._silent = False
            core.observer.first_data_came()
        # For a stream the table is asked when it has ended, not for each of its chunks.
        if machine.state is not _STREAMING:
            machine.receive(_DATA)
            if machine.state in _OVER:
                return
        if core.call.reader.receive(data):
            machine.receive(_DATA)
            core.observer.call_ended()
            core.phase.stop_reading()

    def receive_upstream_end(self, error: UpstreamError | None = None) -> None:
        """The body is over; `error` when it was broken off, or when there was no head at all."""
        self._machine.receive(Input.END)
        if self.state not in _OVER:
            self._core.observer.call_ended(error.fault.value if error is not None else "")
            self._core.phase.receive_end(error)

    def receive_saved(self, error: StoreError | ApiError | None = None) -> None:
        """The row was written, or could not be."""
        self._machine.receive(Input.SAVED)
        # With the row, or by whoever could not write it.
        self._core.locked = self._core.claimed = False
        self._core.phase.receive_saved(error)

    def receive_followed(self) -> None:
        """The client was sent the stream of the response that was queued, as far as this process follows it."""
        self._machine.receive(Input.FOLLOWED)
        self._core.finish("queued")

    # What kind of request it is

    def _begin(self, path: str, body: bytes, prompt: PromptTemplate | None) -> None:
        """Find out what the request is, and begin to serve it; `prompt` is the one it names, once it was loaded."""
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
        """The request, when its model's upstream speaks Responses itself."""
        routes = self._options.routes
        # A prewarm is answered here, wherever its model is: nobody else knows what it is.
        if not self.generate or not routes.has_native:
            return None
        model = read_model(body)
        if model is None or (route := routes.choose(model)).mode != "native":
            return None
        return NativeRequest(self._core, route, model, path)

    def _translated(
        self, path: str, body: bytes, prompt: PromptTemplate | None
    ) -> CountedRequest | QueuedRequest | MadeResponse:
        """The request, which is for a chat server. Raises `ApiError` and `PromptNotLoaded`."""
        core, delivery = self._core, DeliveryOptions(self.generate, self.error_events)
        parsed = parse_request(core, path, body, delivery=delivery, prompt=prompt, queued=self._queued)
        if path == COUNT_PATH:
            return CountedRequest(core, parsed)
        if path != COMPACT_PATH and parsed.request.background and self._queued is None:
            return QueuedRequest(core, parsed, body)
        return MadeResponse(core, parsed)


def _answer_with(core: ExchangeCore, manner: Manner, stored: StoredResponse) -> None:
    """Give what was stored when the same request was served before, in the manner that this one asks for. Nothing is
    done for it, and nothing stored."""
    body = whole_body(stored.body, stored.output_items)
    if not manner.stream:
        core.answer.whole(body, (REPLAYED,))
    else:
        core.answer.open_followed((REPLAYED,))
        if manner.background:
            core.follow(stored.id)
            return
        core.actions.append(SendBody(replayed(body) + DONE))
    core.finish(stored.status)
