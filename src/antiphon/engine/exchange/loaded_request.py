"""Loads the objects that a request refers to, and translates the request into a chat request.

This module checks whether the upstream can serve the request, and requests the stored objects: history, approvals,
files. It creates the errors for missing objects, and puts the items of the model call in order. The package
`translation` parses and translates the body, and `engine/running/loading.py` reads the objects from the store. The
phases in `counted_request.py`, `queued_request.py` and `made_response.py` use the chat request.

Invariants: Antiphon finds the errors of a request before its model call. A missing object and another owner's object
give the same error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from antiphon.engine.exchange.allowed_by_key import check_body
from antiphon.engine.exchange.call_headers import DIALECT
from antiphon.engine.exchange.model_routes import no_such_model
from antiphon.engine.exchange.named_models import fields_of, other_models
from antiphon.engine.exchange.parsed_request import DeliveryOptions, ParsedRequest
from antiphon.engine.exchange.phase import COMPACT_PATH, COUNT_PATH, ExchangeCore
from antiphon.engine.exchange.queueing import QueuedResponse
from antiphon.engine.exchange.requested_tools import (
    Answers,
    answered_already,
    check_servers,
    hosted_tools,
    label_of,
    read_answers,
)
from antiphon.engine.exchange.stored_items import (
    is_hollow,
    is_reference,
    name_calls,
    prepare_input,
    read_history,
    resolve_references,
    stored_input,
)
from antiphon.engine.ports.actions import ComparedResponse, Context, LoadContext, RequestHead, StoredItem
from antiphon.engine.ports.callers import EVERYTHING
from antiphon.engine.ports.hosted_tools import PreparedTool
from antiphon.engine.ports.idempotency import HEADER
from antiphon.errors import ApiError, InvalidRequest, NotFound, invalid_parameter, unsupported_parameter
from antiphon.sealing import Sealer, is_sealed
from antiphon.translation.chat.body import translate_request
from antiphon.translation.chat.compaction import expand_compactions
from antiphon.translation.chat.content import FileNotFetched, file_ids, file_urls, forgive_history, stored_parts
from antiphon.translation.chat.context_size import Named, estimate_tokens
from antiphon.translation.chat.foreign_items import ForeignContent
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.events.response_draft import echo_configuration, start_response
from antiphon.translation.request.body import allow_fields, missing_input, read_request
from antiphon.translation.request.configuration import read_updates
from antiphon.translation.request.openai_forms import check_forms
from antiphon.translation.tool_map import HostedFunction
from antiphon.translation.values import BuilderOptions, ChatTranslation, ItemSources, PromptReference, PromptTemplate
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.items import InputItem
from antiphon.types.request import CreateResponse
from antiphon.types.tolerance import Tolerance
from antiphon.types.views import Manner, StoredParts

_SEALED: Final = "reasoning"
_FULL: Final = 0.8
"""If `context_management` has no `compact_threshold`, Antiphon compacts a conversation that fills more than this
fraction of the model's context."""


def parse_request(
    core: ExchangeCore,
    path: str,
    body: bytes,
    *,
    delivery: DeliveryOptions,
    prompt: PromptTemplate | None = None,
    queued: QueuedResponse | None = None,
) -> ParsedRequest:
    """Parse and check a request's body. `prompt` is the stored prompt that the body names.

    Raises `ApiError` for an invalid request. Raises `PromptNotLoaded` when the body names a prompt and `prompt` is
    None. The caller then loads the prompt and calls this function again.
    """
    options, head = core.options, core.head
    request = read_request(
        body,
        max_items=options.limits.input_items,
        max_tools=options.limits.tools,
        hosted=options.tool_types,
        prompt=prompt,
        max_prompt_bytes=options.limits.request_body_bytes,
        strict=options.strict,
        refuse_tools=options.tool_limits.unavailable == "refuse",
        not_started=options.tools_not_started,
    )
    if path in (COMPACT_PATH, COUNT_PATH):
        request.stream = request.store = request.background = False
        request.compact = path == COMPACT_PATH
        if head.header(HEADER) is not None:
            request.ignored = (*request.ignored, HEADER)
    else:
        if queued is None and not options.stores(head.owner):
            _store_nothing(request)
        if request.prewarm:
            delivery = DeliveryOptions(generate=False, error_events=delivery.error_events)
    core.known.named_model = request.model
    route = options.routes.choose(request.model)
    if prompt is not None and route.mode == "native":
        raise unsupported_parameter(
            f"This server forwards requests for the model '{request.model}' unchanged, so they cannot use the prompts "
            "that this server stores. Leave 'prompt' out and send its text as 'instructions' or 'input'.",
            "prompt",
        )
    if not route.serves(request.model):
        raise no_such_model(request.model, route=route)
    if head.access is not EVERYTHING:
        check_body(head.access, body)
        # The stored prompt may set the model and the tools, and `check_body` does not see the prompt.
        if not head.access.allows_model(request.model):
            raise no_such_model(request.model, access=head.access)
        head.access.check_tools(tool.type for tool in request.tools or ())
    if (reservation := core.observer.reservation) is not None and reservation.by_model and path != COUNT_PATH:
        reservation.others = other_models(request.model, fields_of(body))
    allow_fields(request, route.fields)
    if options.strict and route.mode != "native":
        check_forms(request)
    return ParsedRequest(request, route, route.profile.for_model(route.model or request.model), delivery, path, queued)


def _store_nothing(request: CreateResponse) -> None:
    """Set `store` to false, because the settings forbid storing this owner's responses. Raises `InvalidRequest` for a
    background request, because such a request needs a stored response."""
    if request.background:
        raise unsupported_parameter(
            "This server does not store your responses ('owner.store_never'), but a background response "
            "must be stored until you fetch it. Leave 'background' out.",
            "background",
        )
    request.store = False


def open_sealed(sealer: Sealer, owner: str, text: str, param: str) -> bytes:
    """Decrypt an `encrypted_content` that this server encrypted for the owner. Raises `ForeignContent` if another
    server created the text, and `InvalidRequest` if the text is invalid. `param` is the parameter name for the
    error."""
    if not is_sealed(text):
        raise ForeignContent(
            "Another server created the encrypted content. Leave this item out.",
            param=param,
            code="invalid_encrypted_content",
        )
    return sealer.open(owner, _SEALED, text, param=param)


class LoadedRequest:
    """A request, and the stored objects that the request refers to. The caller first calls `begin`, and then passes the
    answer to each `LoadContext` action to `receive_context`.

    After all objects are loaded, the `LoadedRequest` calls `proceed`. `answers_approvals`: whether this request, or the
    background job that it creates, runs tool calls that the client has approved. `compares`: whether the response may
    report how its prompt differs from the prompt of an earlier response. The request names the earlier response in
    `comparison_response_id`.
    """

    def __init__(
        self,
        core: ExchangeCore,
        parsed: ParsedRequest,
        proceed: Callable[[], None],
        *,
        answers_approvals: bool = False,
        compares: bool = False,
    ) -> None:
        request = parsed.request
        self.core = core
        self.request = request
        self.profile = parsed.profile
        self.delivery = parsed.delivery
        self.compacts = parsed.path == COMPACT_PATH
        """Whether the client requests only a compaction of the conversation, without an answer of the model."""
        self.in_background = parsed.queued is not None
        """Whether this request is a queued background job. Then the client already has an answer to its HTTP
        request."""
        self.builder = self._make_builder(parsed)
        unknown = request.compact_threshold == 0 and parsed.route.context_tokens is None
        self.ignored = (*request.ignored, "context_management") if unknown else request.ignored
        """The request fields that have no effect. `name_ignored` adds the fields that the translation ignores."""
        self.items: list[Named] = []
        """The items that the model gets: the earlier conversation, then the request's input."""
        self.compacted = False
        """Whether Antiphon has compacted the conversation for this response."""
        self.prepared: tuple[PreparedTool, ...] | None = None
        self._stored: tuple[StoredItem, ...] | None = None
        self._history: tuple[StoredItem, ...] | None = None
        self._files: dict[str, FetchedFile | ApiError] | None = None
        self._proceed = proceed
        self._answers_approvals = answers_approvals
        self._comparison_id = request.comparison_response_id if compares else None
        self.compared: ComparedResponse | None = None
        """The earlier response whose prompt Antiphon compares with this request's prompt. None if the owner has no
        response with the requested id."""
        self._answers: Answers | None = None
        self.used: frozenset[str] = frozenset()
        """The ids of approval requests that another response has already used. This response does not run the approved
        tool calls of these requests."""
        core.route = parsed.route
        known = core.known
        known.model, known.response_id, known.streaming = request.model, self.builder.response.id, request.stream
        known.previous_id, known.conversation_id = request.previous_response_id or "", request.conversation or ""
        known.stored = known.quoted = request.store
        known.manner = Manner(request.stream, request.background)
        known.tolerance, known.builder = request.unknown, self.builder

    @property
    def compares(self) -> bool:
        """Whether the response reports how its prompt differs from the prompt of an earlier response."""
        return self._comparison_id is not None

    @property
    def needs_compaction(self) -> bool:
        """Whether Antiphon must compact the conversation before the model answers."""
        if self.compacted or not self.delivery.generate:
            return False
        return self.request.compact or self._is_too_long()

    def _is_too_long(self) -> bool:
        """Whether the conversation exceeds the threshold of `context_management`."""
        request, context_tokens = self.request, self.core.route.context_tokens
        threshold = request.compact_threshold
        if threshold == 0 and context_tokens is not None:
            threshold = int(context_tokens * _FULL)
        if not threshold:
            return False
        fixed = len(bytes(request.instructions or b"")) // 4
        return fixed + sum(estimate_tokens(item) for _, item in self.items) >= threshold

    def begin(self) -> None:
        """Load the objects to which the request refers. If the request refers to no object, continue immediately.
        Raises `ApiError`."""
        request, core = self.request, self.core
        # An unstored response only reads its conversation and adds nothing, so the response needs no lock.
        locked = request.conversation is not None and request.store
        wanted = _wanted_context(request, core.head, core.known.response_id if locked else "", self._comparison_id)
        if wanted is None:
            self._begin_with(())
            return
        core.locked = locked
        core.load(wanted)

    def receive_context(self, context: Context) -> None:
        """Receive the loaded objects, and continue with the next step. Raises `ApiError`, for example for a missing
        object."""
        if self._history is None:
            self.compared = context.compared
            self._begin_with(_history_of(self.request, context))
            return
        answers, self._answers = self._answers, None
        if answers is None:
            self._files = forgive_history(context.files, _files_of(self.request))
        else:
            for request_id, where in answers.new.items():
                if request_id in context.answered:
                    raise answered_already(where, request_id, context.answered[request_id])
            self.used = frozenset(context.answered)
        self._proceed()

    def _begin_with(self, history: tuple[StoredItem, ...]) -> None:
        core, request = self.core, self.request
        self._history = history
        self.items = expand_compactions(_named_items(request, history), self.unseal)
        if read_updates(self.items, request.unknown).apply(request):
            echo_configuration(self.builder.response, request)
            if core.options.strict:
                check_forms(request)
        if self._answers_approvals:
            answers = read_answers(self.items)
            servers = {tool.server_label for tool in request.tools if tool.type == "mcp"}
            check_servers(self.items, answers.new, servers)
            if requests := (*answers.new, *answers.earlier):
                # Before any call runs, record in the store that this response uses the approvals.
                self._answers, core.claimed = answers, True
                core.load(LoadContext(core.head.owner, None, approvals=requests, lock_for=core.known.response_id))
                return
        self._proceed()

    def seal(self, payload: bytes) -> str:
        """Encrypt reasoning or a compaction for the field `encrypted_content`, which the client sends back with a later
        request."""
        return self.core.options.sealer.seal(self.core.head.owner, _SEALED, payload)

    def unseal(self, text: str, param: str) -> bytes:
        """Decrypt a text that `seal` returned. Raises the errors of `open_sealed`."""
        return open_sealed(self.core.options.sealer, self.core.head.owner, text, param)

    def translate(self, request: CreateResponse, items: list[Named]) -> ChatTranslation | None:
        """Translate the request, with `items` as its input, into a chat request. If Antiphon must load files first, the
        method requests the files and returns None. Raises `ApiError`."""
        try:
            return self.translated(request, items, ItemSources(self.unseal, self.files, request.unknown))
        except FileNotFetched:
            if self._files is not None:
                raise
            self.core.load(_files_wanted(self.request, self._history or (), self.core.head))
            return None

    @property
    def files(self) -> dict[str, FetchedFile | ApiError]:
        """The loaded files, by URL and by id."""
        return self._files or {}

    def translated(self, request: CreateResponse, items: list[Named], sources: ItemSources) -> ChatTranslation:
        """Translate the request, with `items` as its input, into a chat request. `sources` has the files and decrypts
        sealed content. Raises `ApiError`."""
        options, route, prepared = self.core.options, self.core.route, self.prepared or ()
        hosted: dict[int, tuple[HostedFunction, ...]] = {
            tool.index: () for tool in hosted_tools(request, options.tool_types)
        }
        hosted |= {one.tool.index: one.functions for one in prepared if one.tool.index in hosted}
        return translate_request(
            request,
            _without_lists(items, prepared),
            self.profile,
            model=route.model,
            context_tokens=route.context_tokens,
            sources=sources,
            max_tools=options.limits.tools,
            hosted=hosted,
            extra=route.extra,
        )

    def name_ignored(self, chat: ChatTranslation) -> None:
        """Set the request fields that the response header `antiphon-ignored` lists."""
        self.core.answer.ignored = (*self.ignored, *self.request.unknown.names, *chat.ignored)

    def prepare_stored(self) -> None:
        """Convert the input to the form that the store saves. Antiphon does this before the model call, because it then
        handles a large request in a thread. After the model call, a large input would block the event loop."""
        if self.request.store:
            self.stored_input()

    def stored_input(self) -> tuple[StoredItem, ...]:
        """Return the request's input items in the form that the store saves."""
        if self._stored is None:
            self._stored = stored_input(prepare_input(self.request.input, self.core.new_id))
        return self._stored

    def _make_builder(self, parsed: ParsedRequest) -> ResponseBuilder:
        core, request, queued = self.core, parsed.request, parsed.queued
        options, dialect = core.options, core.head.header(DIALECT)
        reasoning = request.reasoning
        as_summary = options.reasoning_as == "summary" or (
            options.reasoning_as == "auto"
            and reasoning is not None
            and (reasoning.summary is not None or reasoning.generate_summary is not None)
        )
        return ResponseBuilder(
            start_response(
                request,
                queued.id if queued is not None else core.new_id("resp"),
                queued.created_at if queued is not None else core.clock(),
            ),
            BuilderOptions(
                events=request.stream,
                first_number=queued.first_number if queued is not None and request.stream else 0,
                error_events=parsed.delivery.error_events,
                reasoning_as_summary=as_summary,
                open_responses_names=dialect == "openresponses" if dialect else options.open_responses_names,
                obfuscate=request.obfuscation,
                seal=self.seal if request.encrypted_reasoning else None,
                max_bytes=options.limits.upstream_body_bytes,
            ),
            core.new_id,
        )


def _without_lists(items: list[Named], prepared: Sequence[PreparedTool]) -> list[Named]:
    """Return the conversation without the `mcp_list_tools` items of MCP servers whose tools the chat request declares.

    The translation would convert an `mcp_list_tools` item into a tool call without reasoning. Some upstreams reject a
    turn in which one tool call has reasoning and another has none.
    """
    declared = {function.namespace for one in prepared for function in one.functions}
    if not declared:
        return items
    return [(name, item) for name, item in items if item.type != "mcp_list_tools" or label_of(item) not in declared]


def _wanted_context(
    request: CreateResponse, head: RequestHead, lock_for: str, compared: str | None
) -> LoadContext | None:
    """Return the action that loads the objects of the request, or None if the request refers to no stored object."""
    items = tuple(item.id for item in request.input if item.id and (is_reference(item) or is_hollow(item)))
    previous, conversation = request.previous_response_id, request.conversation
    if previous is None and conversation is None and not items and compared is None:
        return None
    return LoadContext(head.owner, previous, items, conversation=conversation, lock_for=lock_for, compared=compared)


def _history_of(request: CreateResponse, context: Context) -> tuple[StoredItem, ...]:
    """Return the items of the earlier conversation, and resolve the item references in the request's input. Raises
    `ApiError` for a missing object."""
    previous, conversation = request.previous_response_id, request.conversation
    if previous is not None and context.chain is None:
        raise InvalidRequest(
            f"Previous response with id '{previous}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if conversation is not None and context.conversation is None:
        if not conversation.startswith("conv_"):
            problem = f"'{conversation}'. Expected an ID that begins with 'conv_'"
            raise invalid_parameter("conversation", problem)
        raise NotFound(
            f"Conversation with id '{conversation}' not found.", param="conversation", code="conversation_not_found"
        )
    if conversation is not None and not context.conversation and not request.input:
        raise missing_input()
    history = context.conversation or (context.chain.items if context.chain is not None else ())
    request.input = _without_known(resolve_references(request.input, context.items), history, request.unknown)
    return history


def _without_known(items: list[InputItem], history: tuple[StoredItem, ...], tolerance: Tolerance) -> list[InputItem]:
    """Remove the input items that the history already contains, because a model tends to repeat a text that its prompt
    contains twice. In strict mode, raise `InvalidRequest` instead."""
    if not any(item.id for item in items):
        return items
    known = {(one.id, one.type) for one in history}
    kept = []
    for item in items:
        kind = item.type or "message"
        if (item.id, kind) not in known:
            kept.append(item)
            continue
        error = InvalidRequest(
            f"Duplicate item found with id {item.id}. Remove duplicate items from your input and try again.",
            param="input",
            code="duplicate_item",
        )
        tolerance.leave_out(f"input.{kind}:{item.id}", error)
    return kept


def prompt_of(reference: PromptReference, context: Context) -> PromptTemplate:
    """Return the stored prompt that a request names. Raises `InvalidRequest` when the prompt does not exist."""
    if context.prompt is None:
        version = "" if reference.version is None else f" and version '{reference.version}'"
        raise InvalidRequest(
            f"Prompt with id '{reference.id[:128]}'{version} not found.", param="prompt", code="prompt_not_found"
        )
    return PromptTemplate(context.prompt.version, context.prompt.body)


def _files_wanted(request: CreateResponse, history: tuple[StoredItem, ...], head: RequestHead) -> LoadContext:
    """Return the action that loads all files that the request and its history name."""
    items: list[InputItem | StoredParts] = [*stored_parts(item.body for item in history), *_own_items(request)]
    urls, ids = file_urls(items), file_ids(items)
    return LoadContext(head.owner, None, file_urls=tuple(urls), file_ids=tuple(ids))


def _files_of(request: CreateResponse) -> tuple[str, ...]:
    """Return the URLs and ids of the files that the request itself names, without the files of its history. A missing
    file of the history is no error."""
    own = _own_items(request)
    return (*file_urls(own), *file_ids(own))


def _named_items(request: CreateResponse, history: tuple[StoredItem, ...]) -> list[Named]:
    """Return the items of the model call in conversation order, each with the parameter name for error messages, such
    as `input[0]`."""
    before = "previous_response_id" if request.conversation is None else "conversation"
    named = [(f"prompt.input[{number}]", item) for number, item in enumerate(request.prompt_messages)]
    named += [(before, item) for item in read_history(history)]
    name_calls(request.input, len(named))
    named += [(f"input[{number}]", item) for number, item in enumerate(request.input)]
    return named


def _own_items(request: CreateResponse) -> list[InputItem]:
    return [*request.prompt_messages, *request.input]
