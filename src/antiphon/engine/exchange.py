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
    StoredItem,
    UpstreamRequest,
    Usage,
)
from antiphon.engine.answering import Answering
from antiphon.engine.call_headers import DIALECT, forwarded, kept_for_later
from antiphon.engine.hosted import HostedCall, PreparedTool, ToolResult
from antiphon.engine.jobs import JobRequest
from antiphon.engine.opening import (
    files_of,
    files_wanted,
    history_of,
    named_items,
    no_such_model,
    prompt_of,
    wanted_context,
)
from antiphon.engine.options import COMPACT_PATH, COUNT_PATH, RESPONSES_PATH, ExchangeOptions
from antiphon.engine.passing import NativeAnswer
from antiphon.engine.queueing import QueuedResponse, check_background, make_enqueue
from antiphon.engine.records import make_record, prepare_input, stored_input
from antiphon.engine.routes import ModelRoute
from antiphon.engine.states import TRANSITIONS, Input, State
from antiphon.engine.summary import SummaryTurn, compaction_object, is_too_long
from antiphon.engine.tool_turns import ToolTurns, approved_calls, hosted_tools, later_choice, without_lists
from antiphon.errors import (
    ApiError,
    ExchangeStateError,
    InternalError,
    InvalidRequest,
    StoreError,
    UpstreamFailed,
)
from antiphon.ids import Clock, IdFactory
from antiphon.translation.builder import BuilderOptions, ResponseBuilder, add_usage, usage_object
from antiphon.translation.chat_messages import ItemSources
from antiphon.translation.chat_request import ChatTranslation, translate_request
from antiphon.translation.chat_stream import ChatStream, Ending
from antiphon.translation.compaction import Named, expand_compactions
from antiphon.translation.echo import start_response
from antiphon.translation.encode import DONE
from antiphon.translation.file_urls import FileNotFetched, forgive_history
from antiphon.translation.prompt_template import PromptNotLoaded, PromptReference, PromptTemplate, pin_prompt
from antiphon.translation.read_request import read_model, read_request
from antiphon.translation.token_count import COUNT_CALL, count_question, count_read, counted
from antiphon.translation.tool_map import HostedFunction, ToolMap
from antiphon.translation.truncation import estimate_body
from antiphon.translation.upstream_errors import as_event_failure, map_transport_error, map_upstream_answer
from antiphon.types.json import encode
from antiphon.types.request import CreateResponse
from antiphon.types.response import UsageObject
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault, header_value

__all__ = ["COMPACT_PATH", "COUNT_PATH", "ExchangeOptions", "ResponseExchange"]

_CANCELLED = {
    CancelReason.CLIENT_GONE: "The client left before the response was complete.",
    CancelReason.UPSTREAM_GONE: "The upstream broke off its answer.",
    CancelReason.SHUTTING_DOWN: "The server was shut down before the response was complete.",
    CancelReason.DEADLINE: "The response took too long.",
}
# Nothing of a response is there yet, or it is somebody else's.
_UNBEGUN = frozenset({State.NEW, State.CONTEXT, State.PREPARING, State.FOLLOWING})


class ResponseExchange:
    """One client request. Doors call `receive_*` and perform what `actions` returns, in order."""

    def __init__(self, options: ExchangeOptions, new_id: IdFactory, clock: Clock) -> None:
        self._options = options
        self._new_id = new_id
        self._clock = clock
        self._actions: list[Action] = []
        self._answer = Answering(self._actions)
        self.state = State.NEW
        self.generate = True
        """False: everything but the model call (a WebSocket's prewarm): the answer is complete and empty at once."""
        self.error_events = True
        """False: `response.failed` comes without the `error` event before it (which ends a turn on a WebSocket)."""
        self.request_bytes = 0
        """The size of the request's body."""
        # The request, and what it refers to.
        self._head: RequestHead | None = None
        self._purpose = ""
        self._body = b""
        self._prompt: PromptReference | None = None
        self._request: CreateResponse | None = None
        self._route = ModelRoute(
            options.profile,
            passthrough=options.passthrough,
            headers=options.upstream_headers,
            models=options.models,
        )
        self._profile = options.profile
        self._queued: QueuedResponse | None = None
        self._locked = False
        self._history: tuple[StoredItem, ...] | None = None
        self._files: dict[str, FetchedFile | ApiError] | None = None
        self._stored_input: tuple[StoredItem, ...] | None = None
        # The model calls.
        self._native_model = ""
        self._native: NativeAnswer | None = None
        self._items: list[Named] = []
        self._summary: SummaryTurn | None = None
        self._compacted: list[Named] | None = None
        self._prepared: tuple[PreparedTool, ...] | None = None
        self._tool_turns: ToolTurns | None = None
        self._tools = ToolMap()
        self._chat: ChatStream | None = None
        self._upstream_open = False
        self._status = 0
        self._collected: list[bytes] = []
        self._collected_size = 0
        self._estimate = 0
        # The response, and its end.
        self._builder: ResponseBuilder | None = None
        self._spent: UsageObject | None = None
        self._ending: Ending | None = None
        self._ended_at = 0.0
        self._cancelled = False
        self._unsaved = False

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
            return bool(self._purpose)
        hosted = hosted_tools(request, self._options.tool_types)
        return request.compact_threshold is not None or request.background or bool(hosted)

    @property
    def awaits_prompt(self) -> bool:
        """Whether the request cannot be read before its prompt was loaded."""
        return self.state is State.CONTEXT and self._request is None

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

    def unstored_record(self) -> ResponseRecord | None:
        """What a store would keep of a finished response that is not to be stored; None when there is no such."""
        if self._request is None or self._builder is None or self._request.store or self._ending is None:
            return None
        return self._record(self._ending)

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
        self._allow(Input.REQUEST)
        self._head = head
        path = head.path.partition("?")[0]
        self._purpose = path if path in (COMPACT_PATH, COUNT_PATH) else ""
        self.request_bytes = len(body)
        routes = self._options.routes
        try:
            # A prewarm is answered here, wherever its model is: nobody else knows what it is.
            if self.generate and routes is not None and routes.has_native:
                model = read_model(body)
                if model is not None and (route := routes.choose(model)).mode == "native":
                    self._pass_on(model, route, body)
                    return
            self._read(head, body, None)
        except PromptNotLoaded as needed:
            self._body = body
            self._prompt = needed.reference
            self._load(LoadContext(head.owner, None, prompt=PromptUse(needed.reference.id, needed.reference.version)))
        except ApiError as error:
            self._refuse(error)

    def receive_job(self, job: JobRequest, owner: str, response_id: str, last_event: int) -> None:
        """A request that was queued, to be run now: like `receive_request`, for the response there is already.

        Its stream goes on behind the event number `last_event` (-1 when there is none).
        """
        self._queued = QueuedResponse(response_id, job.created_at, last_event + 1)
        self.receive_request(
            RequestHead("POST", RESPONSES_PATH, tuple(job.headers), owner, job.request_id), bytes(job.body)
        )

    def receive_context(self, context: Context | ApiError) -> None:
        """What `LoadContext` asked for, or why it could not be loaded."""
        self._allow(Input.CONTEXT)
        try:
            if self._request is None:
                assert self._prompt is not None and self._head is not None
                body, self._body = self._body, b""
                self._read(self._head, body, prompt_of(self._prompt, context))
            elif self._history is not None:
                if isinstance(context, ApiError):
                    raise context
                self._files = forgive_history(context.files, files_of(self._request))
                self._go_on()
            else:
                self._history = history_of(self._request, context)
                self._go_on()
        except ApiError as error:
            self._refuse(error)

    def receive_tools(self, prepared: tuple[PreparedTool, ...] | ApiError) -> None:
        """What the model is to be shown of the tools that run here, or why one cannot be used."""
        self._allow(Input.PREPARED)
        try:
            if isinstance(prepared, ApiError):
                raise prepared
            self._prepared = prepared
            self._go_on()
        except ApiError as error:
            self._refuse(error)

    def receive_tool_result(self, result: ToolResult) -> None:
        """One of the calls of `RunTools` has ended."""
        self._allow(Input.TOOL)
        assert self._tool_turns is not None and self._builder is not None
        ended = self._tool_turns.receive(result)
        self._answer.events(self._builder)
        if ended:
            self._end_tools()

    def open_stream(self) -> None:
        """The upstream's head is late: a streaming client gets its head and first events now."""
        if self.state is State.CALLING and self.streaming:
            self._open_stream()

    def cancel(self, reason: CancelReason) -> None:
        """The client or the upstream is gone, or the process must end; allowed in every state."""
        if self.state is State.DONE or self._cancelled:
            return
        self._cancelled = True
        self._abort_upstream()
        if self.state is State.SAVING:
            # Everything was received: the row that is being written is the truth.
            return
        if self.state in _UNBEGUN or self._native_model:
            self._finish("cancelled")
            return
        self._close(Ending("failed", code="server_error", message=_CANCELLED[reason]))

    # The upstream's side

    def receive_upstream_head(self, status: int, headers: Headers) -> None:
        """The upstream's status and headers."""
        self._allow(Input.HEAD)
        self._status = status
        if self._native_model:
            self._native = NativeAnswer(self._actions, status, headers, self._options.most_upstream_bytes)
            self._answer.head_sent = self._native.streamed
            self.state = State.PASSING
            return
        assert self._builder is not None
        self._answer.upstream = headers
        if not 200 <= status < 300:
            self.state = State.REFUSED
            return
        summary, turns = self._summary, self._tool_turns
        self._chat = ChatStream(
            self._builder if summary is None else summary.builder,
            self._profile,
            tools=self._tools,
            logprobs=summary is None and self._request is not None and self._request.logprobs,
            citations=turns.citations if summary is None and turns is not None else None,
            event_limit=self._options.most_event_bytes,
            most_calls=self._options.most_tool_calls,
        )
        kind = (header_value(headers, "content-type") or "").lower()
        if "text/event-stream" in kind and self._purpose != COUNT_PATH:
            self.state = State.STREAMING
            if self.streaming:
                self._open_stream()
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
            self._pass_end(error)
        elif state is State.CALLING:
            self._fail_call(map_transport_error(error or UpstreamError(UpstreamFault.UNREACHABLE, "no answer")))
        elif state is State.REFUSED:
            self._fail_call(map_upstream_answer(self._status, self._answer.upstream, b"".join(self._collected)))
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

    # The request becomes a model call

    def _allow(self, happening: Input) -> None:
        if happening not in TRANSITIONS[self.state]:
            raise ExchangeStateError(f"{happening.value} is not allowed in state {self.state.value}")

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
            raise no_such_model(request.model)
        if request.background and self._queued is None:
            check_background(
                head,
                kept_for_later(self._route),
                request.tools,
                available=options.background,
                passthrough=self._route.passthrough,
            )
            self._body = body if request.prompt is None else pin_prompt(body, request.prompt)
        self._request = request
        self._builder = self._make_builder(request, head)
        # What is not stored adds nothing to its conversation: it only reads, whoever else is at it.
        locked = request.conversation is not None and request.store
        wanted = wanted_context(request, head, self.response_id if locked else "")
        if wanted is None:
            self._history = ()
            self._go_on()
            return
        self._locked = locked
        self._load(wanted)

    def _load(self, wanted: LoadContext) -> None:
        self.state = State.CONTEXT
        self._actions.append(wanted)

    def _make_builder(self, request: CreateResponse, head: RequestHead) -> ResponseBuilder:
        options = self._options
        queued = self._queued
        dialect = head.header(DIALECT)
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

    def _seal(self, payload: bytes) -> str:
        """Reasoning, or a compaction, as a text that this owner's client carries (`encrypted_content`)."""
        assert self._options.sealer is not None and self._head is not None
        return self._options.sealer.seal(self._head.owner, "reasoning", payload)

    def _unseal(self, text: str, param: str) -> bytes:
        """What `_seal` was given. Raises `InvalidRequest` naming `param`."""
        if self._options.sealer is None or self._head is None:
            raise InvalidRequest(
                "Encrypted content is not available on this server.", param=param, code="invalid_encrypted_content"
            )
        return self._options.sealer.open(self._head.owner, "reasoning", text, param=param)

    def _go_on(self) -> None:
        """Call the model, or have done first what must come before that. Raises `ApiError`."""
        assert self._request is not None and self._head is not None and self._history is not None
        request = self._request
        ignored = request.ignored
        try:
            items = self._compacted
            if items is None:
                items = expand_compactions(named_items(request, self._history), self._unseal)
                if self.generate and (request.compact or is_too_long(request, items, self._route.context_tokens)):
                    if self._queues:
                        self._enqueue()
                        return
                    if self._sum_up(items):
                        return
                elif request.compact_threshold == 0 and self._route.context_tokens is None:
                    ignored = (*ignored, "context_management")
            if self._prepare_tools(items):
                return
            translated = self._translate(request, items)
        except FileNotFetched:
            if self._files is not None:
                raise
            self._load(files_wanted(request, self._history, self._head))
            return
        self._answer.ignored = (*ignored, *translated.ignored)
        if self._purpose == COUNT_PATH:
            self._count(translated.body)
        elif self._queues:
            self._enqueue()
        elif not self.generate:
            self._prepare_stored()
            self._complete_empty()
        else:
            self._prepare_stored()
            self._ask_model(translated)

    def _count(self, chat: bytes) -> None:
        """How many tokens the request has: the server is asked, where it can count."""
        assert self._request is not None
        self._estimate = estimate_body(chat)
        if self._profile.tokenizer == "none":
            self._answer_count(None)
        else:
            self._call(COUNT_CALL, count_question(chat), self._request.model, stream=False, above=True)

    def _answer_count(self, counted_here: int | None) -> None:
        tokens = self._estimate if counted_here is None else counted_here
        self._answer.upstream = ()
        self._answer.whole(*counted(tokens, estimated=counted_here is None))
        self._finish("completed")

    def _translate(self, request: CreateResponse, items: list[Named]) -> ChatTranslation:
        types = self._options.tool_types
        hosted: dict[int, tuple[HostedFunction, ...]] = {tool.index: () for tool in hosted_tools(request, types)}
        hosted |= {one.tool.index: one.functions for one in self._prepared or () if one.tool.index in hosted}
        return translate_request(
            request,
            without_lists(items, self._prepared or ()),
            self._profile,
            model=self._route.model,
            context_tokens=self._route.context_tokens,
            sources=ItemSources(self._unseal, self._files or {}),
            most_tools=self._options.most_tools,
            hosted=hosted,
        )

    def _prepare_stored(self) -> None:
        assert self._request is not None
        if self._request.store and self._stored_input is None:
            # Now, not when the response ends: a large request is read where it holds nobody up.
            self._stored_input = stored_input(prepare_input(self._request.input, self._new_id))

    def _ask_model(self, translated: ChatTranslation) -> None:
        assert self._request is not None
        self._tools = translated.tools
        self._call("/chat/completions", translated.body, self._request.model, stream=self._request.stream)

    def _call(self, path: str, body: bytes, model: str, *, stream: bool, above: bool = False) -> None:
        assert self._head is not None
        self.state = State.CALLING
        self._upstream_open = True
        self._collected, self._collected_size = [], 0
        headers = forwarded(self._head.headers, self._route, stream=stream, native=bool(self._native_model))
        self._actions.append(
            CallUpstream(UpstreamRequest("POST", path, headers, body, model, stream, self._route.upstream, above))
        )
        if self._queued is not None:
            # Its client has its answer: from here on a failure is one of the response.
            if stream:
                self._open_stream()
            self._answer.head_sent = True

    def _abort_upstream(self) -> None:
        if self._upstream_open:
            self._upstream_open = False
            self._actions.append(AbortUpstream())

    def _open_stream(self) -> None:
        assert self._builder is not None
        self._answer.open_stream(self._builder)

    # Compaction: a turn of its own, before the answer or instead of it

    def _sum_up(self, items: list[Named]) -> bool:
        """Have the model sum up what can be summed up; False when there is nothing."""
        assert self._request is not None and self._builder is not None
        request = self._request
        most = self._options.most_upstream_bytes
        summary = SummaryTurn(request, items, self._builder.response, most, self._new_id)
        if not summary.worthwhile:
            return False
        if self._options.sealer is None:
            raise InvalidRequest(
                "Compaction needs a key ('sealing.keys'), and this server has none.", code="unsupported_parameter"
            )
        translated = self._translate(*summary.asked(request))
        self._answer.ignored = request.ignored
        self._prepare_stored()
        self._summary = summary
        self._ask_model(translated)
        self._tools = ToolMap()
        return True

    def _end_summary(self, summary: SummaryTurn, ending: Ending) -> Ending | None:
        """The model's summary is there, or failed: how the response ends, or None when it goes on."""
        assert self._request is not None and self._builder is not None
        self._chat = None
        self._spent = summary.usage
        if ending.status == "failed" or self._cancelled:
            return ending
        sealed = summary.sealed(self._seal)
        if sealed is None:
            return Ending("failed", code="model_error", message="The model gave no summary of the conversation.")
        self._builder.compaction(sealed)
        if self._request.compact:
            self._builder.response.service_tier = summary.builder.response.service_tier
            self._items = summary.items
            return Ending("completed")
        if self._answer.head_sent:
            self._answer.events(self._builder)
        self._abort_upstream()
        try:
            self._compacted = summary.goes_on_with(sealed, self._unseal)
            self._go_on()
        except ApiError as error:
            self._fail_call(error)
        return None

    # Tools that run here: the model's next turn follows their results

    def _prepare_tools(self, items: list[Named]) -> bool:
        """Have the tools prepared that run here, and calls run that the client has approved; whether that is under
        way."""
        assert self._head is not None and self._request is not None and self._builder is not None
        tools = hosted_tools(self._request, self._options.tool_types, items)
        if not tools or self._purpose == COUNT_PATH or self._queues:
            return False
        if self._prepared is None:
            self.state = State.PREPARING
            self._actions.append(PrepareTools(self._head.owner, self.response_id, tools))
            return True
        if self._tool_turns is not None:
            self._tool_turns.items = items
            return False
        most = self._options.most_hosted_calls
        self._tool_turns = turns = ToolTurns(
            self._builder,
            self._prepared,
            items,
            self._new_id,
            owner=self._head.owner,
            most=min(self._request.max_tool_calls or most, most),
            most_turns=self._options.most_turns,
            include=self._request.include,
            sees=self._profile.images,
        )
        approved = approved_calls(items)
        listed = turns.list_tools(items)
        if not approved:
            if listed and self._request.stream:
                self._open_stream()
                self._answer.events(self._builder)
            return False
        self._prepare_stored()
        self._run_tools(turns.begin_approved(approved))
        return True

    def _end_turn(self) -> bool:
        """Whether the model called tools that run here: the response goes on with them."""
        turns, builder = self._tool_turns, self._builder
        assert builder is not None
        calls = turns.take_calls() if turns is not None else []
        if turns is None or not calls:
            return False
        self._chat = None
        if builder.response.usage is not None:
            self._spent = add_usage(builder.response.usage, self._spent)
            builder.response.usage = None
        self._abort_upstream()
        self._run_tools(turns.begin(calls))
        return True

    def _run_tools(self, calls: tuple[HostedCall, ...]) -> None:
        assert self._request is not None and self._builder is not None
        self.state = State.RUNNING
        if self._request.stream:
            self._open_stream()
        self._answer.events(self._builder)
        if calls:
            self._actions.append(RunTools(calls))
        else:
            self._end_tools()

    def _end_tools(self) -> None:
        """All calls of the turn have their results: the model goes on, unless the client must do something first."""
        assert self._tool_turns is not None and self._request is not None
        turns = self._tool_turns
        if turns.end_turn():
            self._conclude(Ending("completed"))
            return
        self._request.tool_choice = later_choice(self._request.tool_choice, last=turns.exhausted)
        try:
            self._ask_model(self._translate(self._request, turns.items))
        except ApiError as error:
            self._fail_call(error)

    # A background response: queued here, run by a worker

    @property
    def _queues(self) -> bool:
        """Whether the response is only queued here, for a worker to run."""
        return self._queued is None and self._request is not None and self._request.background

    def _enqueue(self) -> None:
        assert self._builder is not None and self._head is not None and self._request is not None
        self._prepare_stored()
        builder, body = self._builder, self._body
        self._body = b""
        builder.queue()
        kept = kept_for_later(self._route)
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
            self._answer.open_followed()
            self._actions.append(FollowResponse(self._head.owner, self._builder.response.id))
            self.state = State.FOLLOWING
        else:
            self._answer.whole(encode(self._builder.response))
            self._finish("queued")

    # An upstream that speaks Responses itself

    def _pass_on(self, model: str, route: ModelRoute, body: bytes) -> None:
        """The request goes on as it came; nothing of it is kept here."""
        self._native_model = model
        self._route = route
        if not route.serves(model):
            raise no_such_model(model)
        self._call(self._purpose.removeprefix("/v1") or "/responses", body, model, stream=True)

    def _pass_data(self, data: bytes) -> None:
        assert self._native is not None
        if self._native.receive(data):
            return
        if self._native.streamed:
            self._pass_end(UpstreamError(UpstreamFault.TOO_LARGE, "the stream has no end"))
        else:
            self._refuse(UpstreamFailed("The upstream's answer is too large.", code="upstream_too_large"))

    def _pass_end(self, error: UpstreamError | None) -> None:
        assert self._native is not None
        if error is None:
            outcome = self._native.end()
            self._answer.head_sent = True
            self._finish(outcome)
        elif self._native.streamed:
            # The bytes so far are the client's; that they are not all can only be told by breaking off.
            self._upstream_open = False
            self._actions.append(AbortUpstream())
            self._finish("cut")
        else:
            self._refuse(map_transport_error(error))

    # The model's answer is over

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
        if self._purpose == COUNT_PATH:
            self._answer_count(count_read(body))
            return
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
        if self._purpose == COUNT_PATH:
            self._answer_count(None)
        elif self._answer.head_sent:
            code, message = as_event_failure(error)
            self._close(Ending("failed", code=code, message=message))
        else:
            self._refuse(error)

    def _close(self, cut: Ending | None) -> None:
        """The model's output is over: the turn's, or the response's."""
        if self._chat is not None:
            ending = self._chat.end(cut)
        else:
            ending = cut or Ending("failed", code="server_error", message="There was no answer.")
        if self._cancelled and cut is not None:
            ending = cut
        summary, self._summary = self._summary, None
        if summary is not None:
            goes_on = self._end_summary(summary, ending)
            if goes_on is None:
                return
            ending = goes_on
        elif ending.status == "completed" and not self._cancelled and self._end_turn():
            return
        self._conclude(ending)

    def _conclude(self, ending: Ending) -> None:
        """The response is over: save, and tell the client."""
        assert self._builder is not None and self._request is not None
        self._ended_at = self._clock()
        self._ending = ending
        if self._tool_turns is not None:
            self._tool_turns.stop()
        if self._spent is not None:
            self._builder.set_usage(add_usage(self._spent, self._builder.response.usage))
        if self._purpose == COMPACT_PATH and ending.status == "completed":
            self._answer.whole(compaction_object(self._builder, self._items, self._new_id))
            self._finish("completed")
            return
        head_sent = self._answer.head_sent
        if self._request.stream and not self._cancelled and (head_sent or ending.status != "failed"):
            self._open_stream()
            self._answer.events(self._builder)
        if ending.status == "failed":
            self._abort_upstream()
        if ending.status == "failed" and not self._answer.head_sent and not self._cancelled:
            # The client gets an HTTP error and never sees an id.
            self._send_ending(ending)
            return
        self._save(ending)

    def _complete_empty(self) -> None:
        """No model is asked: an answer without output, which later requests can continue."""
        assert self._builder is not None and self._request is not None
        self._ended_at = self._clock()
        self._ending = Ending("completed")
        self._builder.response.usage = usage_object(0, 0, 0, 0, 0, 0)
        if self._request.stream:
            self._open_stream()
        self._save(self._ending)

    def _save(self, ending: Ending) -> None:
        assert self._request is not None
        if not self._request.store:
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

    def _send_ending(self, ending: Ending) -> None:
        """The terminal event, the JSON answer, or the error; then the end."""
        self._release()
        assert self._builder is not None and self._request is not None
        builder, answer = self._builder, self._answer
        if self._cancelled:
            self._finish("cancelled")
            return
        if ending.status == "failed" and not answer.head_sent:
            self._refuse(InternalError(ending.message) if self._unsaved else answer.as_http_error(ending))
            return
        if ending.status == "completed":
            builder.complete(self._ended_at)
        elif ending.status == "incomplete":
            builder.incomplete(ending.reason)
        else:
            builder.fail(ending.code, ending.message)
        if self._request.stream:
            answer.events(builder, DONE)
        else:
            answer.whole(encode(builder.response))
        self._finish(ending.status)

    def _refuse(self, error: ApiError) -> None:
        """Answer with an HTTP error."""
        self._release()
        self._abort_upstream()
        self._answer.refuse(error)
        self._finish("error")

    def _release(self) -> None:
        """Nothing will be added to the conversation: others may have it, before the client hears of the end."""
        if self._locked:
            self._locked = False
            self._actions.append(ReleaseConversation(self.response_id))

    def _finish(self, outcome: str) -> None:
        self._release()
        self.state = State.DONE
        self._actions.append(Finish(outcome, self.usage, self.model))
