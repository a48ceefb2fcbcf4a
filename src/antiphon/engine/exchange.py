"""One `POST /v1/responses`, from its bytes to its last event: a state machine without I/O.

Lives here: the order of things. Not here: translation (`translation/`), performing actions (`runner.py`), and any
transport. No await, no clock but the one given, no randomness but the ids given.

    NEW ──request──▶ CONTEXT ──context──▶ CALLING ──head──▶ STREAMING | COLLECTING ──end──▶ SAVING ──saved──▶ DONE
         └─ without history: straight to CALLING          (non-2xx: REFUSED ──end──▶ DONE with the mapped status)

`TRANSITIONS` (`states.py`) is the whole table; a test walks every pair of state and input. An input that the table does
not allow raises `ExchangeStateError` (a door's bug); bad bytes never raise, they become the failed path.

Invariants: `SendHead` comes once, before any `SendBody`; `Finish` comes last and once; the response is saved before
its terminal event is sent; after `Finish` nothing is asked for any more.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import Raw

from antiphon.engine.actions import (
    AbortUpstream,
    Action,
    CallUpstream,
    CancelReason,
    Context,
    FetchedFile,
    Finish,
    FollowResponse,
    LoadContext,
    PrepareTools,
    PromptUse,
    ReleaseConversation,
    RequestHead,
    ResponseRecord,
    RunTools,
    SaveResponse,
    SendBody,
    SendHead,
    StoredItem,
    UpstreamRequest,
    Usage,
)
from antiphon.engine.hosted import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.engine.jobs import JobRequest
from antiphon.engine.queueing import QueuedResponse, check_background, given_ids, make_enqueue
from antiphon.engine.records import (
    is_hollow,
    item_body,
    make_record,
    prepare_input,
    read_history,
    resolve_references,
    stored_input,
)
from antiphon.engine.routes import ModelRoute, Routes
from antiphon.engine.states import TRANSITIONS, Input, State
from antiphon.engine.tool_turns import ToolTurns, approved_calls, later_choice
from antiphon.errors import (
    ApiError,
    ExchangeStateError,
    InternalError,
    InvalidRequest,
    NotFound,
    StoreError,
    UpstreamFailed,
)
from antiphon.ids import Clock, IdFactory
from antiphon.sealing import Sealer
from antiphon.translation.builder import BuilderOptions, ResponseBuilder, add_usage, usage_object
from antiphon.translation.chat_messages import ItemSources
from antiphon.translation.chat_request import ChatTranslation, translate_request
from antiphon.translation.chat_stream import ChatStream, Ending
from antiphon.translation.compaction import (
    Named,
    ask_for_summary,
    compaction_payload,
    expand_compactions,
    latest_users,
    split,
)
from antiphon.translation.echo import start_response
from antiphon.translation.encode import DONE
from antiphon.translation.file_urls import (
    FileNotFetched,
    file_ids,
    file_urls,
    forgive_history,
    stored_file_ids,
    stored_file_urls,
)
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.prompt_template import PromptNotLoaded, PromptReference, PromptTemplate, pin_prompt
from antiphon.translation.read_request import missing_input, read_model, read_request
from antiphon.translation.tool_map import HostedFunction, ToolMap
from antiphon.translation.truncation import estimate_body, estimate_tokens
from antiphon.translation.upstream_errors import (
    as_event_failure,
    map_transport_error,
    map_upstream_answer,
    passed_headers,
)
from antiphon.types.items import InputItem, Message, OutputItem, OutputText, Reasoning
from antiphon.types.json import encode
from antiphon.types.request import CreateResponse
from antiphon.types.response import UsageObject
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault, header_value

__all__ = ["COMPACT_PATH", "COUNT_PATH", "ExchangeOptions", "ResponseExchange"]

COMPACT_PATH = "/v1/responses/compact"
COUNT_PATH = "/v1/responses/input_tokens"


@dataclass(frozen=True, slots=True)
class ExchangeOptions:
    """What settings say about every exchange; made once per process.

    `routes` says where each model goes; without it, everything to one upstream with `profile`, `upstream_headers`,
    `passthrough` and `models` (when not empty, all there are).
    """

    profile: UpstreamProfile
    routes: Routes | None = None
    models: frozenset[str] = frozenset()
    upstream_headers: frozenset[str] = frozenset()
    passthrough: bool = True
    open_responses_names: bool = False
    reasoning_as: str = "auto"
    most_input_items: int = 10_000
    most_tools: int = 1_024
    most_tool_calls: int = 256
    most_upstream_bytes: int = 1 << 26
    most_hosted_calls: int = 128
    most_turns: int = 32
    most_error_bytes: int = 1 << 18
    most_event_bytes: int = 1 << 23
    sealer: Sealer | None = None
    background: bool = False
    """Whether responses can be queued."""
    tool_types: frozenset[str] = frozenset()
    """Types of tools that run here."""


_SSE_HEADERS = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))
_JSON = ("content-type", "application/json")
_DIALECT = "antiphon-dialect"
RESPONSES_PATH = "/v1/responses"
_ALWAYS_PASSED = frozenset({"traceparent", "tracestate", "x-request-id"})
# What else a Responses service reads; and what is the business of whoever's credentials the call carries.
_NATIVE_HEADERS = frozenset({"openai-beta"})
_ACCOUNT_HEADERS = frozenset({"openai-organization", "openai-project", "idempotency-key"})
# Of a connection, of the bytes on one, or of who holds it: not the client's.
_WIRE_HEADERS = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "content-encoding", "content-length", "alt-svc", "date", "server"),
    }
)
_CANCELLED = {
    CancelReason.CLIENT_GONE: "The client left before the response was complete.",
    CancelReason.UPSTREAM_GONE: "The upstream broke off its answer.",
    CancelReason.SHUTTING_DOWN: "The server was shut down before the response was complete.",
    CancelReason.DEADLINE: "The response took too long.",
}


@dataclass(frozen=True, slots=True)
class _Summary:
    """A turn in which the model sums the conversation up: what was before it, what stays beside it, and who takes the
    model's words meanwhile."""

    items: list[Named]
    kept: list[bytes]
    builder: ResponseBuilder


class ResponseExchange:
    """One client request. Doors call `receive_*` and perform what `actions` returns, in order."""

    def __init__(self, options: ExchangeOptions, new_id: IdFactory, clock: Clock) -> None:
        self._options = options
        self._new_id = new_id
        self._clock = clock
        self._actions: list[Action] = []
        self._head: RequestHead | None = None
        self._request: CreateResponse | None = None
        self._builder: ResponseBuilder | None = None
        self._chat: ChatStream | None = None
        self._collected: list[bytes] = []
        self._collected_size = 0
        self._status = 0
        self._upstream_headers: Headers = ()
        self._stored_input: tuple[StoredItem, ...] | None = None
        self._history: tuple[StoredItem, ...] | None = None
        self._files: dict[str, FetchedFile | ApiError] = {}
        self._route = ModelRoute(
            options.profile,
            passthrough=options.passthrough,
            headers=options.upstream_headers,
            models=options.models,
        )
        self._native_model = ""
        self._profile = options.profile
        self._tools = ToolMap()
        self._ignored: tuple[str, ...] = ()
        self._purpose = ""
        self._summary: _Summary | None = None
        self._compacted: list[Named] | None = None
        self._summed: list[Named] = []
        self._spent: UsageObject | None = None
        self._pending: tuple[StoredItem, ...] = ()
        self._prepared: tuple[PreparedTool, ...] | None = None
        self._tool_turns: ToolTurns | None = None
        self._items: list[Named] = []
        self._said: list[OutputItem] = []
        self._turn = 0
        self._prompt: PromptReference | None = None
        self._locked = False
        self._queued: QueuedResponse | None = None
        self._body = b""
        self._ending: Ending | None = None
        self._head_sent = False
        self._upstream_open = False
        self._cancelled = False
        self._unsaved = False
        self._ended_at = 0.0
        self.generate = True
        """False: everything but the model call (a WebSocket's prewarm): the answer is complete and empty at once."""
        self.error_events = True
        """False: `response.failed` comes without the `error` event before it (which ends a turn on a WebSocket)."""
        self.request_bytes = 0
        """The size of the request's body."""
        self.state = State.NEW

    # What doors and the runner read

    @property
    def streaming(self) -> bool:
        """Whether the client asked for an event stream."""
        return self._request is not None and self._request.stream

    @property
    def needs_drive(self) -> bool:
        """Whether Envoy cannot make this request's model call: there is more to it than one call and its answer."""
        request = self._request
        if self._purpose or request is None:
            # What a prompt asks for is not known yet.
            return bool(self._purpose) or self._prompt is not None
        return request.compact_threshold is not None or request.background or bool(self._hosted_tools())

    @property
    def done(self) -> bool:
        """Whether nothing more will be asked for."""
        # A lock that is still to be given back is more than nothing, although the client has all it gets.
        return self.state is State.DONE and not any(isinstance(each, ReleaseConversation) for each in self._actions)

    @property
    def stored(self) -> bool:
        """Whether the response is to be stored."""
        return self._request is not None and self._request.store

    @property
    def model(self) -> str:
        """The model asked for, once the request was read."""
        return self._request.model if self._request is not None else self._native_model

    @property
    def response_id(self) -> str:
        """The response's id, once the request was read."""
        return self._builder.response.id if self._builder is not None else ""

    def unstored_record(self) -> ResponseRecord | None:
        """What a store would keep of a finished response that is not to be stored; None when there is no such."""
        if self._request is None or self._builder is None or self._request.store or self._ending is None:
            return None
        return self._record(self._ending)

    @property
    def usage(self) -> Usage | None:
        """Token counts, once they are known."""
        usage = self._builder.response.usage if self._builder is not None else None
        if usage is None:
            return None
        return Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.total_tokens,
            cached_tokens=usage.input_tokens_details.cached_tokens,
            cache_write_tokens=usage.input_tokens_details.cache_write_tokens,
            reasoning_tokens=usage.output_tokens_details.reasoning_tokens,
        )

    def actions(self) -> list[Action]:
        """What is to be done now, in order."""
        actions = self._actions
        if actions:
            self._actions = []
        return actions

    def next_action(self) -> Action | None:
        """The first thing to be done now. What is not taken stays: whoever takes over finds it."""
        return self._actions.pop(0) if self._actions else None

    # The client's side

    def receive_request(self, head: RequestHead, body: bytes) -> None:
        """The whole request."""
        self._allow(Input.REQUEST)
        self._head = head
        path = head.path.partition("?")[0]
        self._purpose = path if path in (COMPACT_PATH, COUNT_PATH) else ""
        self.request_bytes = len(body)
        options = self._options
        try:
            # A prewarm is answered here, wherever its model is: nobody else knows what it is.
            if self.generate and options.routes is not None and options.routes.has_native:
                model = read_model(body)
                if model is not None and (route := options.routes.choose(model)).mode == "native":
                    self._pass_on(model, route, body)
                    return
            self._read(head, body, None)
        except PromptNotLoaded as needed:
            self._body = body
            self._prompt = needed.reference
            self.state = State.CONTEXT
            prompt = PromptUse(needed.reference.id, needed.reference.version)
            self._actions.append(LoadContext(head.owner, None, prompt=prompt))
        except ApiError as error:
            self._refuse(error)

    def _read(self, head: RequestHead, body: bytes, prompt: PromptTemplate | None) -> None:
        """Understand the request, and ask for what it refers to or call the model."""
        options = self._options
        request = read_request(
            body,
            most_items=options.most_input_items,
            most_tools=options.most_tools,
            hosted=options.tool_types,
            prompt=prompt,
        )
        if self._purpose:
            request.stream = request.store = request.background = False
            request.compact = self._purpose == COMPACT_PATH
        elif request.prewarm:
            self.generate = False
        if options.routes is not None:
            self._route = options.routes.choose(request.model)
        if prompt is not None and self._route.mode == "native":
            raise InvalidRequest(
                f"The model '{request.model}' is served by an upstream that takes requests as they are and knows no "
                "prompts of this server.",
                param="prompt",
                code="unsupported_parameter",
            )
        self._profile = self._route.profile.for_model(self._route.model or request.model)
        if not self._route.serves(request.model):
            raise _no_such_model(request.model)
        if request.background and self._queued is None:
            check_background(
                head,
                self._kept_headers,
                request.tools,
                available=options.background,
                passthrough=self._route.passthrough,
            )
            self._body = body if request.prompt is None else pin_prompt(body, request.prompt)
        self._request = request
        self._builder = self._make_builder(request, head)
        wanted = tuple(item.id for item in request.input if item.id and (_is_reference(item) or is_hollow(item)))
        if request.previous_response_id is None and request.conversation is None and not wanted:
            self._call_upstream(())
            return
        self.state = State.CONTEXT
        # What is not stored adds nothing to its conversation: it only reads, whoever else is at it.
        self._locked = request.conversation is not None and request.store
        lock_for = self.response_id if self._locked else ""
        self._actions.append(
            LoadContext(
                head.owner,
                request.previous_response_id,
                wanted,
                conversation=request.conversation,
                lock_for=lock_for,
            )
        )

    def receive_job(self, job: JobRequest, owner: str, response_id: str, last_event: int) -> None:
        """A request that was queued, to be run now: like `receive_request`, for the response there is already.

        Its stream goes on behind the event number `last_event` (-1 when there is none).
        """
        self._queued = QueuedResponse(response_id, job.created_at, tuple(job.input_ids), last_event + 1)
        self.receive_request(
            RequestHead("POST", RESPONSES_PATH, tuple(job.headers), owner, job.request_id), bytes(job.body)
        )

    def receive_context(self, context: Context | ApiError) -> None:
        """What `LoadContext` asked for, or why it could not be loaded."""
        self._allow(Input.CONTEXT)
        if self._request is None:
            self._receive_prompt(context)
            return
        try:
            if isinstance(context, ApiError):
                raise context
            previous = self._request.previous_response_id
            if previous is not None and context.chain is None and self._history is None:
                raise InvalidRequest(
                    f"Previous response with id '{previous}' not found.",
                    param="previous_response_id",
                    code="previous_response_not_found",
                )
            conversation = self._request.conversation
            if conversation is not None and context.conversation is None and self._history is None:
                raise InvalidRequest(
                    f"Conversation with id '{conversation}' not found.",
                    param="conversation",
                    code="conversation_not_found",
                )
            if self._history is not None:
                own = [*self._request.prompt_messages, *self._request.input]
                self._files = forgive_history(context.files, (*file_urls(own), *file_ids(own)))
                self._call_upstream(self._history)
                return
            if conversation is not None and not context.conversation and not self._request.input:
                raise missing_input()
            self._request.input = resolve_references(self._request.input, context.items)
            self._call_upstream(context.conversation or (context.chain.items if context.chain is not None else ()))
        except ApiError as error:
            self._refuse(error)

    def _receive_prompt(self, context: Context | ApiError) -> None:
        """The prompt that the request names: only now it can be read."""
        assert self._prompt is not None and self._head is not None
        body, self._body = self._body, b""
        try:
            if isinstance(context, ApiError):
                raise context
            if context.prompt is None:
                version = "" if self._prompt.version is None else f" and version '{self._prompt.version}'"
                raise InvalidRequest(
                    f"Prompt with id '{self._prompt.id[:128]}'{version} not found.",
                    param="prompt",
                    code="prompt_not_found",
                )
            self._read(self._head, body, PromptTemplate(context.prompt.version, context.prompt.body))
        except ApiError as error:
            self._refuse(error)

    def receive_tools(self, prepared: tuple[PreparedTool, ...] | ApiError) -> None:
        """What the model is to be shown of the tools that run here, or why one cannot be used."""
        self._allow(Input.PREPARED)
        try:
            if isinstance(prepared, ApiError):
                raise prepared
            self._prepared = prepared
            self._call_upstream(self._pending)
        except ApiError as error:
            self._refuse(error)

    def receive_tool_result(self, result: ToolResult) -> None:
        """One of the calls of `RunTools` has ended."""
        self._allow(Input.TOOL)
        assert self._tool_turns is not None
        ended = self._tool_turns.receive(result)
        self._send_events()
        if ended:
            self._end_tools()

    def open_stream(self) -> None:
        """The upstream's head is late: a streaming client gets its head and first events now."""
        if self.state is State.CALLING and self.streaming:
            self._send_stream_head()

    def cancel(self, reason: CancelReason) -> None:
        """The client or the upstream is gone, or the process must end; allowed in every state."""
        if self.state is State.DONE or self._cancelled:
            return
        self._cancelled = True
        if self._upstream_open:
            self._upstream_open = False
            self._actions.append(AbortUpstream())
        if self.state is State.SAVING:
            # Everything was received: the row that is being written is the truth.
            return
        if self.state in (State.NEW, State.CONTEXT, State.PREPARING, State.FOLLOWING) or self._native_model:
            self._finish("cancelled")
            return
        self._close(Ending("failed", code="server_error", message=_CANCELLED[reason]))

    # The upstream's side

    def receive_upstream_head(self, status: int, headers: Headers) -> None:
        """The upstream's status and headers."""
        self._allow(Input.HEAD)
        if self._native_model:
            self._pass_back(status, headers)
            return
        assert self._builder is not None
        self._status = status
        self._upstream_headers = headers
        if not 200 <= status < 300:
            self.state = State.REFUSED
            return
        summary = self._summary
        self._chat = ChatStream(
            self._builder if summary is None else summary.builder,
            self._profile,
            tools=self._tools,
            logprobs=summary is None and self._request is not None and self._request.logprobs,
            citations=self._tool_turns.citations if summary is None and self._tool_turns is not None else None,
            event_limit=self._options.most_event_bytes,
            most_calls=self._options.most_tool_calls,
        )
        kind = (header_value(headers, "content-type") or "").lower()
        if "text/event-stream" in kind:
            self.state = State.STREAMING
            if self.streaming:
                self._send_stream_head()
        else:
            # JSON although a stream was asked for, or something that is no answer at all: judged when it is whole.
            self.state = State.COLLECTING

    def receive_upstream_data(self, data: bytes) -> None:
        """Body bytes, in any split."""
        state = self.state
        if state is State.STREAMING:
            chat, builder = self._chat, self._builder
            assert chat is not None and builder is not None
            chat.receive_data(data)
            out = builder.take()
            if out:
                self._actions.append(SendBody(out))
            if chat.ended:
                self._close(None)
            return
        self._allow(Input.DATA)
        if state is State.PASSING:
            self._pass_data(data)
        elif state is State.COLLECTING or state is State.REFUSED:
            self._collect(data)

    def receive_upstream_end(self, error: UpstreamError | None = None) -> None:
        """The body is over; `error` when it was broken off, or when there was no head at all."""
        self._allow(Input.END)
        self._upstream_open = False
        state = self.state
        if state is State.PASSING:
            self._passed(error)
        elif state is State.CALLING:
            self._fail_call(map_transport_error(error or UpstreamError(UpstreamFault.UNREACHABLE, "no answer")))
        elif state is State.REFUSED:
            self._fail_call(map_upstream_answer(self._status, self._upstream_headers, b"".join(self._collected)))
        elif state is State.COLLECTING and error is None:
            self._read_collected()
        elif state in (State.STREAMING, State.COLLECTING):
            mapped = map_transport_error(error) if error is not None else None
            self._close(
                Ending("failed", code=mapped.code or "server_error", message=mapped.message) if mapped else None
            )

    def receive_saved(self, error: StoreError | ApiError | None = None) -> None:
        """The row was written, or could not be."""
        self._allow(Input.SAVED)
        # With the row, or by whoever could not write it.
        self._locked = False
        if self._queues:
            self._answer_queued(error)
            return
        assert self._ending is not None
        if error is not None:
            self._unsaved = True
            self._ending = Ending("failed", code="server_error", message="The response could not be stored.")
        self._send_ending(self._ending)

    def receive_followed(self) -> None:
        """The client was sent the whole stream of the response that was queued."""
        self._allow(Input.FOLLOWED)
        self._finish("queued")

    # Inside

    def _release(self) -> None:
        """Nothing will be added to the conversation: others may have it, before the client hears of the end."""
        if self._locked:
            self._locked = False
            self._actions.append(ReleaseConversation(self.response_id))

    @property
    def _queues(self) -> bool:
        """Whether the response is only queued here, for a worker to run."""
        return self._queued is None and self._request is not None and self._request.background

    def _allow(self, happening: Input) -> None:
        if happening not in TRANSITIONS[self.state]:
            raise ExchangeStateError(f"{happening.value} is not allowed in state {self.state.value}")

    def _seal(self, payload: bytes) -> str:
        """Reasoning as a text that this owner's client carries (`encrypted_content`)."""
        assert self._options.sealer is not None and self._head is not None
        return self._options.sealer.seal(self._head.owner, "reasoning", payload)

    def _unseal(self, text: str, param: str) -> bytes:
        """What `_seal` was given. Raises `InvalidRequest` naming `param`."""
        if self._options.sealer is None or self._head is None:
            raise InvalidRequest(
                "Encrypted content is not available on this server.", param=param, code="invalid_encrypted_content"
            )
        return self._options.sealer.open(self._head.owner, "reasoning", text, param=param)

    def _make_builder(self, request: CreateResponse, head: RequestHead) -> ResponseBuilder:
        options = self._options
        queued = self._queued
        dialect = head.header(_DIALECT)
        reasoning = request.reasoning
        as_summary = options.reasoning_as == "summary" or (
            options.reasoning_as == "auto"
            and reasoning is not None
            and (reasoning.summary is not None or reasoning.generate_summary is not None)
        )
        return ResponseBuilder(
            start_response(
                request,
                queued.id if queued is not None else self._new_id("resp"),
                queued.created_at if queued is not None else self._clock(),
            ),
            BuilderOptions(
                events=request.stream,
                first_number=queued.first_number if queued is not None and request.stream else 0,
                error_events=self.error_events,
                reasoning_as_summary=as_summary,
                open_responses_names=dialect == "openresponses" if dialect else options.open_responses_names,
                obfuscate=request.obfuscation,
                seal=self._seal if request.encrypted_reasoning and options.sealer is not None else None,
                most_bytes=options.most_upstream_bytes,
            ),
            self._new_id,
        )

    def _load_files(self, history: tuple[StoredItem, ...]) -> None:
        """The items name files by URL or id: have all of them fetched, then translate again."""
        assert self._request is not None and self._head is not None
        own = [*self._request.prompt_messages, *self._request.input]
        bodies = [item.body for item in history]
        urls = dict.fromkeys(stored_file_urls(bodies) + file_urls(own))
        ids = dict.fromkeys(stored_file_ids(bodies) + file_ids(own))
        self._history = history
        self.state = State.CONTEXT
        self._actions.append(LoadContext(self._head.owner, None, file_urls=tuple(urls), file_ids=tuple(ids)))

    def _call_upstream(self, history: tuple[StoredItem, ...]) -> None:
        assert self._request is not None and self._head is not None
        request = self._request
        ignored = request.ignored
        try:
            if self._compacted is not None:
                items = self._compacted
            else:
                items = expand_compactions(_named_items(request, history), self._unseal)
                if self.generate and (request.compact or self._is_too_long(items)):
                    if self._queues:
                        self._enqueue()
                        return
                    if self._sum_up(items):
                        return
                elif request.compact_threshold == 0 and self._route.context_tokens is None:
                    ignored = (*ignored, "context_management")
            if self._prepare_tools(history, items):
                return
            translated = self._translate(request, items)
        except FileNotFetched:
            if self._history is not None:
                raise
            self._load_files(history)
            return
        self._tools = translated.tools
        self._ignored = (*ignored, *translated.ignored)
        if self._purpose == COUNT_PATH:
            self._answer(
                encode({"object": "response.input_tokens", "input_tokens": estimate_body(translated.body)}),
                (("antiphon-estimated", "input_tokens"),),
            )
            return
        if self._queues:
            self._enqueue()
            return
        self._prepare_stored()
        if not self.generate:
            self._complete_empty()
            return
        self._call("/chat/completions", translated.body, request.model, stream=request.stream)

    def _translate(self, request: CreateResponse, items: list[Named]) -> ChatTranslation:
        hosted: dict[int, tuple[HostedFunction, ...]] = {tool.index: () for tool in self._hosted_tools()}
        hosted |= {one.tool.index: one.functions for one in self._prepared or ()}
        return translate_request(
            request,
            items,
            self._profile,
            model=self._route.model,
            context_tokens=self._route.context_tokens,
            sources=ItemSources(self._unseal, self._files),
            most_tools=self._options.most_tools,
            hosted=hosted,
        )

    # Tools that run here: the model's next turn follows their results

    def _hosted_tools(self) -> tuple[HostedTool, ...]:
        request, types = self._request, self._options.tool_types
        if request is None or not types:
            return ()
        return tuple(
            HostedTool(number, tool.type, bytes(tool.source))
            for number, tool in enumerate(request.tools)
            if tool.type in types
        )

    def _prepare_tools(self, history: tuple[StoredItem, ...], items: list[Named]) -> bool:
        """Have the tools prepared that run here, and calls run that the client has approved; whether that is under
        way."""
        assert self._head is not None and self._request is not None and self._builder is not None
        tools = self._hosted_tools()
        if not tools or self._purpose == COUNT_PATH or self._queues:
            return False
        if self._prepared is None:
            self._pending = history
            self.state = State.PREPARING
            self._actions.append(PrepareTools(self._head.owner, self.response_id, tools))
            return True
        self._items = items
        if self._tool_turns is not None:
            return False
        most = self._options.most_hosted_calls
        self._tool_turns = turns = ToolTurns(
            self._builder,
            self._prepared,
            self._new_id,
            owner=self._head.owner,
            most=min(self._request.max_tool_calls or most, most),
            include=self._request.include,
        )
        approved = approved_calls(items)
        listed = turns.list_tools(items)
        if not approved:
            if listed and self._request.stream:
                self._send_stream_head()
                self._send_events()
            return False
        self._prepare_stored()
        self._run_tools(turns.begin_approved(approved))
        return True

    def _end_turn(self) -> bool:
        """Whether the model called tools that run here: the response goes on with them."""
        builder, turns = self._builder, self._tool_turns
        assert builder is not None
        if turns is None or not builder.hosted_calls:
            return False
        calls, builder.hosted_calls = builder.hosted_calls, []
        self._said = builder.items[turns.seen :]
        self._chat = None
        if builder.response.usage is not None:
            self._spent = add_usage(builder.response.usage, self._spent)
            builder.response.usage = None
        if self._upstream_open:
            self._upstream_open = False
            self._actions.append(AbortUpstream())
        self._run_tools(turns.begin(calls))
        return True

    def _run_tools(self, calls: tuple[HostedCall, ...]) -> None:
        assert self._request is not None
        self.state = State.RUNNING
        if self._request.stream:
            self._send_stream_head()
        self._send_events()
        if calls:
            self._actions.append(RunTools(calls))
        else:
            self._end_tools()

    def _end_tools(self) -> None:
        """All calls of the turn have their results: the model goes on, unless the client must do something first."""
        assert self._tool_turns is not None and self._request is not None
        turns = self._tool_turns
        said = [item for item in self._said if isinstance(item, Message | Reasoning)]
        waits = turns.asks_client or len(said) < len(self._said)
        self._items = [
            *self._items,
            *(("output", item) for item in read_history(StoredItem(one.id, one.type, encode(one)) for one in said)),
            *turns.followup(),
        ]
        self._said = []
        turns.seen = len(turns.builder.items)
        if waits:
            self._conclude(Ending("completed"))
            return
        self._turn += 1
        last = self._turn >= self._options.most_turns or turns.exhausted
        self._request.tool_choice = later_choice(self._request.tool_choice, last=last)
        try:
            translated = self._translate(self._request, self._items)
            self._tools = translated.tools
            self._call("/chat/completions", translated.body, self._request.model, stream=self._request.stream)
        except ApiError as error:
            self._fail_call(error)

    def _send_events(self) -> None:
        assert self._builder is not None
        out = self._builder.take()
        if out:
            self._actions.append(SendBody(out))

    def _prepare_stored(self) -> None:
        assert self._request is not None
        if self._request.store and self._stored_input is None:
            # Now, not when the response ends: a large request is read where it holds nobody up.
            queued = self._queued
            new_id = self._new_id if queued is None else given_ids(queued.input_ids, self._new_id)
            self._stored_input = stored_input(prepare_input(self._request.input, new_id))

    # A background response: queued here, run by a worker

    @property
    def _kept_headers(self) -> frozenset[str]:
        return (self._route.headers | _ALWAYS_PASSED | {_DIALECT}) - {"authorization"}

    def _enqueue(self) -> None:
        assert self._builder is not None and self._head is not None and self._request is not None
        self._prepare_stored()
        builder, body = self._builder, self._body
        self._body = b""
        builder.queue()
        kept = self._kept_headers
        self.state = State.SAVING
        self._actions.append(
            make_enqueue(
                builder.response,
                self._head,
                body,
                self._stored_input or (),
                tuple((name, value) for name, value in self._head.headers if name in kept),
                builder.take(),
                self._request.conversation,
            )
        )

    def _answer_queued(self, error: StoreError | ApiError | None) -> None:
        assert self._builder is not None and self._request is not None and self._head is not None
        if error is not None:
            failure = InternalError("The response could not be stored.", code="storage_failed")
            self._refuse(error if isinstance(error, ApiError) else failure)
        elif self._cancelled:
            self._finish("cancelled")
        elif self._request.stream:
            self._head_sent = True
            self._actions.append(SendHead(200, (*_SSE_HEADERS, *self._ignored_header()), streamed=True))
            self._actions.append(FollowResponse(self._head.owner, self._builder.response.id))
            self.state = State.FOLLOWING
        else:
            self._answer(encode(self._builder.response), outcome="queued")

    # Compaction: a turn of its own, before the answer or instead of it

    def _is_too_long(self, items: list[Named]) -> bool:
        request, context = self._request, self._route.context_tokens
        assert request is not None
        threshold = request.compact_threshold
        if threshold == 0 and context is not None:
            threshold = context * 8 // 10
        if not threshold:
            return False
        fixed = len(bytes(request.instructions or b"")) // 4
        return fixed + sum(estimate_tokens(item) for _, item in items) >= threshold

    def _sum_up(self, items: list[Named]) -> bool:
        """Have the model sum up what can be summed up; False when there is nothing."""
        assert self._request is not None and self._builder is not None
        request = self._request
        halves = split(items, latest=not request.compact)
        if not request.compact and all(item.role in ("system", "developer") for _, item in halves.summed):
            return False
        if self._options.sealer is None:
            raise InvalidRequest(
                "Compaction needs a key ('sealing.keys'), and this server has none.", code="unsupported_parameter"
            )
        asked = msgspec.structs.replace(
            request,
            tools=(),
            tool_choice=None,
            parallel_tool_calls=None,
            text=None,
            max_output_tokens=None,
            logprobs=False,
            top_logprobs=None,
            # Better a summary of the latest part than none.
            truncation="auto",
        )
        translated = self._translate(asked, [*halves.summed, ask_for_summary()])
        self._tools = ToolMap()
        self._ignored = request.ignored
        self._prepare_stored()
        response = msgspec.structs.replace(self._builder.response)
        quiet = ResponseBuilder(
            response, BuilderOptions(events=False, most_bytes=self._options.most_upstream_bytes), self._new_id
        )
        self._summary = _Summary(items, [item_body(item) for item in halves.kept], quiet)
        self._call("/chat/completions", translated.body, request.model, stream=request.stream)
        return True

    def _end_summary(self, summary: _Summary, ending: Ending) -> Ending | None:
        """The model's summary is there, or failed: how the response ends, or None when it goes on."""
        assert self._request is not None and self._builder is not None
        self._summary, self._chat = None, None
        self._spent = summary.builder.response.usage
        text = b"".join(_text_of(item) for item in summary.builder.items if isinstance(item, Message))
        if ending.status == "failed" or self._cancelled:
            return ending
        if not text:
            return Ending("failed", code="model_error", message="The model gave no summary of the conversation.")
        covers = not self._request.compact
        sealed = self._seal(compaction_payload(text, summary.kept, covers=covers))
        self._builder.compaction(sealed)
        if not covers:
            self._builder.response.service_tier = summary.builder.response.service_tier
            return Ending("completed")
        if self._head_sent:
            self._actions.append(SendBody(self._builder.take()))
        if self._upstream_open:
            self._upstream_open = False
            self._actions.append(AbortUpstream())
        compaction = InputItem(type="compaction", encrypted_content=sealed)
        try:
            self._compacted = expand_compactions([*summary.items, ("input", compaction)], self._unseal)
            self._call_upstream(self._history or ())
        except ApiError as error:
            self._fail_call(error)
        return None

    def _answer_compaction(self) -> None:
        """The compacted conversation, for whoever begins a new chain with it."""
        assert self._builder is not None
        response = self._builder.response
        users = stored_input(prepare_input(latest_users(self._summed), self._new_id))
        output = [*(Raw(item.body) for item in users), *self._builder.items]
        usage = response.usage or usage_object(0, 0, 0, 0, 0, 0)
        self._answer(
            encode(
                {
                    "id": response.id,
                    "object": "response.compaction",
                    "created_at": response.created_at,
                    "output": output,
                    "usage": usage,
                }
            )
        )

    def _answer(self, body: bytes, headers: Headers = (), outcome: str = "completed") -> None:
        """A whole JSON answer that is no finished response."""
        self._head_sent = True
        length = ("content-length", str(len(body)))
        self._actions.append(SendHead(200, (_JSON, length, *headers, *self._ignored_header())))
        self._actions.append(SendBody(body))
        self._finish(outcome)

    def _call(self, path: str, body: bytes, model: str, *, stream: bool) -> None:
        assert self._head is not None
        self.state = State.CALLING
        self._upstream_open = True
        self._collected, self._collected_size = [], 0
        headers = self._allowed_headers(self._head.headers, stream)
        self._actions.append(
            CallUpstream(UpstreamRequest("POST", path, headers, body, model, stream, self._route.upstream))
        )
        if self._queued is not None:
            # Its client has its answer: from here on a failure is one of the response.
            if stream:
                self._send_stream_head()
            self._head_sent = True

    # An upstream that speaks Responses itself

    def _pass_on(self, model: str, route: ModelRoute, body: bytes) -> None:
        """The request goes on as it came; nothing of it is kept here."""
        self._native_model = model
        self._route = route
        if not route.serves(model):
            raise _no_such_model(model)
        self._call(self._purpose.removeprefix("/v1") or "/responses", body, model, stream=True)

    def _pass_back(self, status: int, headers: Headers) -> None:
        self.state = State.PASSING
        self._status = status
        self._upstream_headers = _end_to_end(headers)
        if "text/event-stream" in (header_value(headers, "content-type") or "").lower():
            self._head_sent = True
            self._actions.append(SendHead(status, self._upstream_headers, streamed=True, raw=True))

    def _pass_data(self, data: bytes) -> None:
        """A stream goes on at once. What is no stream waits for its end: until then a failure can be an error."""
        self._collected_size += len(data)
        too_large = self._collected_size > self._options.most_upstream_bytes
        if self._head_sent:
            if too_large:
                self._passed(UpstreamError(UpstreamFault.TOO_LARGE, "the stream has no end"))
            else:
                self._actions.append(SendBody(data))
        elif too_large:
            self._refuse(UpstreamFailed("The upstream's answer is too large.", code="upstream_too_large"))
        else:
            self._collected.append(data)

    def _passed(self, error: UpstreamError | None) -> None:
        if error is not None and not self._head_sent:
            self._refuse(map_transport_error(error))
            return
        if error is not None:
            # The bytes so far are the client's; that they are not all can only be told by breaking off.
            self._upstream_open = False
            self._actions.append(AbortUpstream())
            self._finish("cut")
            return
        if not self._head_sent:
            self._head_sent = True
            body = b"".join(self._collected)
            length = (("content-length", str(len(body))),) if self._status not in (204, 304) else ()
            self._actions.append(SendHead(self._status, (*self._upstream_headers, *length), raw=True))
            self._actions.append(SendBody(body))
        self._finish("completed" if self._status < 400 else "error")

    def _allowed_headers(self, headers: Headers, stream: bool) -> Headers:
        route = self._route
        allowed = route.headers | _ALWAYS_PASSED
        accept = "text/event-stream" if stream else "application/json"
        if self._native_model:
            allowed |= _NATIVE_HEADERS | _ACCOUNT_HEADERS if route.passthrough else _NATIVE_HEADERS
            # The body says whether it is to be a stream, and is not read here.
            accept = header_value(headers, "accept") or "*/*"
        kept = tuple(
            (name, value)
            for name, value in headers
            if (name in allowed and name != "accept") or (name == "authorization" and route.passthrough)
        )
        return (_JSON, ("accept", accept), *kept)

    def _send_stream_head(self) -> None:
        assert self._builder is not None
        if self._head_sent:
            return
        self._head_sent = True
        self._builder.start()
        headers = (*_SSE_HEADERS, *self._ignored_header(), *passed_headers(self._upstream_headers))
        self._actions.append(SendHead(200, headers, streamed=True))
        self._actions.append(SendBody(self._builder.take()))

    def _ignored_header(self) -> Headers:
        """What was asked for and has no effect, named for the client (at most 1 KB)."""
        if not self._ignored:
            return ()
        names = ", ".join(_token(name) for name in self._ignored)
        if len(names) > 1024:
            names = names[:1021].rpartition(",")[0] + ",..."
        return (("antiphon-ignored", names),)

    def _collect(self, data: bytes) -> None:
        most = self._options.most_error_bytes if self.state is State.REFUSED else self._options.most_upstream_bytes
        self._collected_size += len(data)
        if self._collected_size <= most:
            self._collected.append(data)
        elif self.state is State.COLLECTING:
            self._close(Ending("failed", code="upstream_too_large", message="The upstream's answer is too large."))

    def _read_collected(self) -> None:
        assert self._chat is not None and self._builder is not None
        body = b"".join(self._collected)
        self._collected = []
        # The first events come before any item; they are sent only if this is an answer (`_close`).
        self._builder.start()
        if body.lstrip()[:1] in (b"d", b":", b"e") and (b"data:" in body[:4096]):
            # An event stream that does not say so (or came although none was asked for).
            self._chat.receive_data(body)
        else:
            self._chat.receive_completion(body)
        self._close(None)

    def _fail_call(self, error: ApiError) -> None:
        """There will be no answer: an HTTP error while that is possible, else the failed path."""
        if self._head_sent:
            code, message = as_event_failure(error)
            self._close(Ending("failed", code=code, message=message))
        else:
            self._refuse(error)

    def _close(self, cut: Ending | None) -> None:
        """The model's output is over: close what is open, and save."""
        assert self._builder is not None and self._request is not None and self._head is not None
        self._ended_at = self._clock()
        if self._chat is not None:
            self._ending = self._chat.end(cut)
        else:
            self._ending = cut or Ending("failed", code="server_error", message="There was no answer.")
        if self._cancelled and cut is not None:
            self._ending = cut
        if self._summary is not None:
            self._summed = self._summary.items
            goes_on = self._end_summary(self._summary, self._ending)
            if goes_on is None:
                return
            self._ending = goes_on
        elif self._ending.status == "completed" and not self._cancelled and self._end_turn():
            return
        self._conclude(self._ending)

    def _conclude(self, ending: Ending) -> None:
        """The response is over: save, and tell the client."""
        assert self._builder is not None and self._request is not None and self._head is not None
        self._ended_at = self._clock()
        self._ending = ending
        if self._tool_turns is not None:
            self._tool_turns.stop()
        if self._spent is not None:
            self._builder.set_usage(add_usage(self._spent, self._builder.response.usage))
        if self._purpose == COMPACT_PATH and ending.status == "completed":
            self._answer_compaction()
            return
        if self._request.stream and not self._cancelled and (self._head_sent or ending.status != "failed"):
            self._send_stream_head()
            out = self._builder.take()
            if out:
                self._actions.append(SendBody(out))
        if self._upstream_open and ending.status == "failed":
            self._upstream_open = False
            self._actions.append(AbortUpstream())
        if not self._request.store or (ending.status == "failed" and not self._head_sent and not self._cancelled):
            # Not to be stored, or the client gets an HTTP error and never sees an id.
            self._send_ending(ending)
            return
        self.state = State.SAVING
        self._actions.append(SaveResponse(self._record(ending)))

    def _record(self, ending: Ending) -> ResponseRecord:
        assert self._builder is not None and self._head is not None and self._request is not None
        items = self._stored_input
        if items is None:
            items = stored_input(prepare_input(self._request.input, self._new_id))
        return make_record(
            self._builder.response,
            ending,
            self._head.owner,
            items,
            self._builder.items,
            self._ended_at,
            self.usage,
        )

    def _complete_empty(self) -> None:
        """No model is asked: an answer without output, which later requests can continue."""
        assert self._builder is not None and self._request is not None
        self._ended_at = self._clock()
        self._ending = Ending("completed")
        self._builder.response.usage = usage_object(0, 0, 0, 0, 0, 0)
        if self._request.stream:
            self._send_stream_head()
        if not self._request.store:
            self._send_ending(self._ending)
            return
        self.state = State.SAVING
        self._actions.append(SaveResponse(self._record(self._ending)))

    def _send_ending(self, ending: Ending) -> None:
        """The terminal event, the JSON answer, or the error; then the end."""
        self._release()
        assert self._builder is not None and self._request is not None
        builder = self._builder
        if self._cancelled:
            self._finish("cancelled")
            return
        if ending.status == "failed" and not self._head_sent:
            self._refuse(InternalError(ending.message) if self._unsaved else self._as_http_error(ending))
            return
        if ending.status == "completed":
            builder.complete(self._ended_at)
        elif ending.status == "incomplete":
            builder.incomplete(ending.reason)
        else:
            builder.fail(ending.code, ending.message)
        if self._request.stream:
            self._actions.append(SendBody(builder.take() + DONE))
        else:
            self._head_sent = True
            body = encode(builder.response)
            length = ("content-length", str(len(body)))
            passed = passed_headers(self._upstream_headers)
            self._actions.append(SendHead(200, (_JSON, length, *self._ignored_header(), *passed)))
            self._actions.append(SendBody(body))
        self._finish(ending.status)

    def _as_http_error(self, ending: Ending) -> ApiError:
        """A failure before the head: the status that tells the client whose fault it was."""
        error = ending.error
        if error is None:
            return UpstreamFailed(ending.message, code=ending.code)
        headers = error.headers or passed_headers(self._upstream_headers)
        return ApiError(
            error.message, status=error.status, type=error.type, code=error.code, param=error.param, headers=headers
        )

    def _refuse(self, error: ApiError) -> None:
        """Answer with an HTTP error."""
        self._release()
        if self._upstream_open:
            self._upstream_open = False
            self._actions.append(AbortUpstream())
        body = error.body()
        self._head_sent = True
        self._actions.append(SendHead(error.status, (_JSON, ("content-length", str(len(body))), *error.headers)))
        self._actions.append(SendBody(body))
        self._finish("error")

    def _finish(self, outcome: str) -> None:
        self._release()
        self.state = State.DONE
        self._actions.append(Finish(outcome, self.usage, self.model))


def _no_such_model(model: str) -> NotFound:
    return NotFound(
        f"The model '{model}' does not exist or you do not have access to it.",
        param="model",
        code="model_not_found",
    )


def _end_to_end(headers: Headers) -> Headers:
    """An answer's headers without those of one connection, and without what Envoy says of itself."""
    of_hop = _WIRE_HEADERS
    if named := header_value(headers, "connection"):
        of_hop |= {name.strip().lower() for name in named.split(",")}
    return tuple(
        (name, value)
        for name, value in headers
        if name[:1] != ":" and name not in of_hop and not name.startswith("x-envoy-")
    )


def _is_reference(item: InputItem) -> bool:
    return item.type == "item_reference" or (item.type is None and item.role is None and item.id is not None)


def _named_items(request: CreateResponse, history: tuple[StoredItem, ...]) -> list[tuple[str, InputItem]]:
    before = "previous_response_id" if request.conversation is None else "conversation"
    named = [(f"prompt.input[{number}]", item) for number, item in enumerate(request.prompt_messages)]
    named += [(before, item) for item in read_history(history)]
    named += [(f"input[{number}]", item) for number, item in enumerate(request.input)]
    return named


def _token(name: str) -> str:
    """A name as it may stand in a header: everything but plain characters is escaped."""
    return "".join(ch if ch.isascii() and (ch.isalnum() or ch in "_-.:[]") else f"%{ord(ch):02X}" for ch in name[:128])


def _text_of(item: Message) -> bytes:
    """A message's text, as a fragment."""
    return b"".join(bytes(part.text)[1:-1] for part in item.content if isinstance(part, OutputText))
