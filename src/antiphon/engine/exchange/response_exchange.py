"""One `POST /v1/responses`, from its bytes to its last event: a state machine without I/O.

Lives here: the face for doors and the runner, what kind of request it is, limits. Not here: the states (`states.py`;
`docs/exchange.md` has the picture), what each kind of request does (`served_request.py` and the kinds it names),
translation (`translation/`), performing actions (`engine/running/runner.py`), and any transport. No await, no clock but
the one given, no randomness but the ids given.

An input that the state does not allow raises `ExchangeStateError` (a door's bug); bad bytes never raise, they become
the failed path.

Invariants: `SendHead` comes once, before any `SendBody`; `Finish` comes last and once; the response is saved before
its terminal event is sent; after `Finish` nothing is asked for any more.
"""

from __future__ import annotations

from typing import Final

from antiphon.engine.exchange.asked import Wishes
from antiphon.engine.exchange.budget import Hold
from antiphon.engine.exchange.compacted_conversation import CompactedConversation
from antiphon.engine.exchange.counted_request import CountedRequest
from antiphon.engine.exchange.failure import Failure, cancelled
from antiphon.engine.exchange.local_answers import local_fault
from antiphon.engine.exchange.made_response import MadeResponse
from antiphon.engine.exchange.native_request import NativeRequest
from antiphon.engine.exchange.options import COMPACT_PATH, COUNT_PATH, RESPONSES_PATH, ExchangeOptions
from antiphon.engine.exchange.queued_request import QueuedRequest
from antiphon.engine.exchange.queueing import QueuedResponse, open_headers
from antiphon.engine.exchange.replayed_response import ReplayedResponse
from antiphon.engine.exchange.served_request import ExchangeCore, ServedRequest, refused_for
from antiphon.engine.exchange.states import Input, State
from antiphon.engine.exchange.time_limits import FOREVER, Late, Watch, too_late
from antiphon.engine.exchange.translated_request import TranslatedRequest, read_asked
from antiphon.engine.exchange.unread_request import UnreadRequest
from antiphon.engine.ports.actions import (
    Action,
    CancelReason,
    Context,
    FollowResponse,
    ReleaseConversation,
    RequestHead,
    ResponseRecord,
    Usage,
)
from antiphon.engine.ports.hosted_tools import PreparedTool, ToolResult
from antiphon.engine.ports.jobs import JobRequest
from antiphon.engine.ports.observer import Observer
from antiphon.engine.ports.state import StoredResponse
from antiphon.errors import ApiError, StoreError
from antiphon.ids import Clock, IdFactory
from antiphon.translation.prompt_template import PromptNotLoaded
from antiphon.translation.read_request import read_model
from antiphon.translation.values import PromptTemplate
from antiphon.types.transport import (
    LOCAL_REPLY,
    TRIED_HEADER,
    UPSTREAM_HEADER,
    Headers,
    UpstreamError,
    UpstreamFault,
    header_value,
)

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
_NOBODY: Final = RequestHead("POST", RESPONSES_PATH, (), "")


class ResponseExchange:
    """One client request. Doors call `receive_*` and perform what `next_action` gives, in order."""

    def __init__(self, options: ExchangeOptions, new_id: IdFactory, clock: Clock) -> None:
        self._options = options
        self._core = ExchangeCore(options, new_id, clock)
        self._machine = self._core.machine
        self._actions = self._core.actions
        self._served = ServedRequest(self._core, _NOBODY)
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
    def state(self) -> State:
        """Where it is."""
        return self._machine.state

    @property
    def streaming(self) -> bool:
        """Whether the client asked for an event stream."""
        return self._served.streaming

    @property
    def needs_drive(self) -> bool:
        """Whether Envoy cannot make this request's model call: the request may need more than one call, or continues
        without its client."""
        return self._served.needs_drive or self._core.keyed

    @property
    def awaits_prompt(self) -> bool:
        """Whether the request cannot be read before its prompt was loaded."""
        return self._machine.state is State.CONTEXT and isinstance(self._served, UnreadRequest)

    @property
    def goes_on(self) -> bool:
        """Whether it continues when its client disconnects, so that a retry with its key gets the result."""
        return self._core.keyed and isinstance(self._served, MadeResponse)

    @property
    def again(self) -> bool:
        """Whether its client is given what the same request made before."""
        return isinstance(self._served, ReplayedResponse)

    @property
    def done(self) -> bool:
        """Whether nothing more will be asked for."""
        # A lock that is still to be given back is more than nothing, although the client has all it gets.
        return self._machine.state is _DONE and not any(isinstance(each, ReleaseConversation) for each in self._actions)

    @property
    def stored(self) -> bool:
        """Whether the response is to be stored."""
        return self._served.stored

    @property
    def makes_response(self) -> bool:
        """Whether the request, which was read, is for a response that this server makes."""
        return self._served.makes_response and self.state is not State.DONE

    @property
    def model(self) -> str:
        """The model asked for, once the request was read."""
        return self._served.model

    @property
    def response_id(self) -> str:
        """The response's id, once the request was read."""
        return self._served.response_id

    @property
    def unknown(self) -> tuple[str, ...]:
        """What was left out of the request since nobody here knows it."""
        return self._served.unknown

    @property
    def left_out(self) -> tuple[str, ...]:
        """The unknown parts of the request, and the known tools that do not run here."""
        served = self._served
        return tuple(dict.fromkeys((*served.unknown, *served.unavailable_tools)))

    @property
    def usage(self) -> Usage | None:
        """Token counts, once they are known."""
        return self._served.usage

    @property
    def failure(self) -> Failure | None:
        """Why it failed, for the log; the first cause counts."""
        return self._core.failure

    @property
    def answered_by(self) -> str:
        """Which of several upstreams has answered; empty where there is one alone, or none has."""
        return self._core.answer.answered_by

    @property
    def fell_back(self) -> bool:
        """Whether an upstream has answered for another."""
        return bool(self._core.fallback)

    @property
    def output_items(self) -> bytes:
        """The items that are done, as a JSON array."""
        return self._served.output_items

    @property
    def events(self) -> int:
        """How many events its stream has so far."""
        return self._served.events

    @property
    def floods(self) -> bool:
        """Whether the upstream sends a lot without any output: others come first, until that is ended."""
        return self._served.reader.idle > _FLOOD

    @property
    def output_bytes(self) -> int:
        """What the response has grown to."""
        return self._served.output_bytes

    def unstored_record(self) -> ResponseRecord | None:
        """What a store would keep of a finished response that is not to be stored; None when there is no such."""
        return self._served.unstored_record()

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
        self._served = ServedRequest(self._core, head)
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
            self._served.refuse(error)
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
        self._served.refuse(error)

    def answer_again(self, stored: StoredResponse) -> None:
        """The same request was served before: its client gets what was stored then. Nothing was done for it yet; one
        whose prompt was not loaded has not even been read, and need not be."""
        # What is given again may be a background response's stream, whatever was read of the request.
        drives = self.awaits_prompt or self._served.needs_drive
        self._machine.receive(Input.AGAIN)
        self._actions.clear()
        self._core.locked = self._core.claimed = self._core.keyed = False
        self._served = replay = ReplayedResponse(self._served, stored, needs_drive=drives)
        replay.begin()

    def receive_context(self, context: Context | ApiError) -> None:
        """What `LoadContext` asked for, or why it could not be loaded."""
        self._machine.receive(Input.CONTEXT)
        served = self._served
        try:
            if isinstance(context, ApiError):
                raise context
            if isinstance(served, UnreadRequest):
                template = served.template(context)
                self._served = ServedRequest(self._core, served.head)
                self._begin(served.path, served.body, template)
            else:
                served.receive_context(context)
        except (ApiError, RecursionError) as error:
            self._served.reject(refused_for(error))

    def receive_tools(self, prepared: tuple[PreparedTool, ...] | ApiError) -> None:
        """What the model is to be shown of the tools that run here, or why one cannot be used."""
        self._machine.receive(Input.PREPARED)
        try:
            if isinstance(prepared, ApiError):
                raise prepared
            self._served.receive_tools(prepared)
        except (ApiError, RecursionError) as error:
            self._served.reject(refused_for(error))

    def receive_tool_result(self, result: ToolResult) -> None:
        """One of the calls of `RunTools` has ended."""
        self._machine.receive(Input.TOOL)
        self._served.receive_tool_result(result)

    def receive_unclaimed(self, error: StoreError) -> None:
        """The store could not claim the calls of `RunTools`: none was sent."""
        self._machine.receive(Input.TOOL)
        self._served.receive_unclaimed(error)

    def receive_silence(self) -> None:
        """Nothing came for a while: allowed in every state.

        A streaming client whose upstream's head is late gets its head and first events now; one whose stream is open
        gets a comment. Else nothing goes out: what the upstream is saying may become an error, with a length.
        """
        self._served.receive_silence()

    def receive_time(self, at: float) -> float:
        """What time it is, by any steady clock; allowed in every state. What has taken too long is ended.

        Returns when the time is to be told again, at the latest."""
        watch, machine = self._watch, self._machine
        while (state := machine.state) in _TIMED:
            late = watch.look(at, state, _TIMED[state], self._served.reader.output)
            if late is None:
                return watch.next
            machine.receive(Input.LIMIT)
            if late is Late.ERROR_BODY:
                self._served.stop_reading()
            else:
                self._served.fail(too_late(late, self._options.times))
        return FOREVER

    def receive_too_much(self, error: ApiError) -> None:
        """The client's stream has grown too large for whoever carries it; allowed in every state, like the time, and it
        ends what the time ends."""
        self._machine.receive(Input.LIMIT)
        if self.state in _TIMED:
            self._served.fail(error)

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
        ended = cancelled(reason, state, self._served.asked)
        core.note_failure(ended)
        if state in _UNBEGUN:
            # Whoever left follows nothing any more, not even what a door had no time to begin with.
            self._actions[:] = [each for each in self._actions if not isinstance(each, FollowResponse)]
            self._served.finish("cancelled")
        else:
            self._served.cancel(reason, ended.cause)

    def break_off(self) -> None:
        """It is not gone on with here, and ends elsewhere: what its call has taken so far is told."""
        if self.state is not State.DONE:
            self._served.break_off()

    # The upstream's side

    def receive_upstream_head(self, status: int, headers: Headers) -> None:
        """The upstream's status and headers."""
        self._machine.receive(Input.HEAD)
        self._served.upstream_status = status
        if (local := header_value(headers, LOCAL_REPLY)) is not None:
            self._served.upstream_status, self._served.local_reply = 0, local
            headers = tuple(pair for pair in headers if pair[0] != LOCAL_REPLY)
        if self._served.route.several and (name := header_value(headers, UPSTREAM_HEADER)):
            tried = header_value(headers, TRIED_HEADER) or ""
            self._served.receive_source(name, int(tried) if tried.isdecimal() else 1)
        self._silent = True
        self._core.observer.head_came(self._served.asked, self._served.upstream_status)
        if local is not None and (fault := local_fault(local)) is UpstreamFault.CUT:
            self._core.observer.call_ended(fault.value)
        self._served.receive_head(status, headers)

    def receive_upstream_data(self, data: bytes) -> None:
        """Body bytes, in any split."""
        machine, served = self._machine, self._served
        if self._silent:
            self._silent = False
            self._core.observer.first_data_came()
        # For a stream the table is asked when it has ended, not for each of its chunks.
        if machine.state is not _STREAMING:
            machine.receive(_DATA)
            if machine.state in _OVER:
                return
        if served.reader.receive(data):
            machine.receive(_DATA)
            self._core.observer.call_ended()
            served.stop_reading()

    def receive_upstream_end(self, error: UpstreamError | None = None) -> None:
        """The body is over; `error` when it was broken off, or when there was no head at all."""
        self._machine.receive(Input.END)
        if self.state not in _OVER:
            self._core.observer.call_ended(error.fault.value if error is not None else "")
            self._served.receive_end(error)

    def receive_saved(self, error: StoreError | ApiError | None = None) -> None:
        """The row was written, or could not be."""
        self._machine.receive(Input.SAVED)
        # With the row, or by whoever could not write it.
        self._core.locked = self._core.claimed = False
        self._served.receive_saved(error)

    def receive_followed(self) -> None:
        """The client was sent the stream of the response that was queued, as far as this process follows it."""
        self._machine.receive(Input.FOLLOWED)
        self._served.receive_followed()

    # What kind of request it is

    def _begin(self, path: str, body: bytes, prompt: PromptTemplate | None) -> None:
        """Find out what the request is, and begin to serve it; `prompt` is the one it names, once it was loaded."""
        head = self._served.head
        try:
            native = self._native(path, body) if prompt is None else None
            if native is not None:
                self._served = native
                native.begin(body)
            else:
                self._served = request = self._translated(path, body, prompt)
                request.begin()
        except PromptNotLoaded as needed:
            self._served = unread = UnreadRequest(self._core, head, path, body, needed.reference)
            unread.begin()
        except (ApiError, RecursionError) as error:
            self._served.reject(refused_for(error))

    def _native(self, path: str, body: bytes) -> NativeRequest | None:
        """The request, when its model's upstream speaks Responses itself."""
        routes = self._options.routes
        # A prewarm is answered here, wherever its model is: nobody else knows what it is.
        if not self.generate or routes is None or not routes.has_native:
            return None
        model = read_model(body)
        if model is None or (route := routes.choose(model)).mode != "native":
            return None
        return NativeRequest(self._core, self._served.head, route, model, path)

    def _translated(self, path: str, body: bytes, prompt: PromptTemplate | None) -> TranslatedRequest:
        """The request, which is for a chat server. Raises `ApiError` and `PromptNotLoaded`."""
        core, head = self._core, self._served.head
        asked = read_asked(
            self._options,
            head,
            path,
            body,
            default=self._served.route,
            wishes=Wishes(self.generate, self.error_events),
            prompt=prompt,
            queued=self._queued,
        )
        if path == COUNT_PATH:
            return CountedRequest(core, head, asked)
        if path == COMPACT_PATH:
            return CompactedConversation(core, head, asked)
        if asked.request.background and self._queued is None:
            return QueuedRequest(core, head, asked, body)
        return MadeResponse(core, head, asked)
