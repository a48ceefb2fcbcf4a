"""Makes a response with the model, in these phases: loading, compaction, tools, model calls, end.

This module defines the order of the phases, and the phases in which the sidecar calls the model. The model either
answers the client or summarizes the conversation (compaction). Each phase requests the model call, chooses the parser
for the model's output, and reports the token usage.

`loaded_request.py` loads stored objects and decides whether a compaction is necessary. `translation/chat/compaction.py`
defines the format of a compaction. `answer_readers.py` parses the bytes of an answer. The other phases are in
`running_tools.py` and `response_end.py`.

Invariants: Antiphon first compacts the conversation, then prepares the tools, then lets the model answer. The client
does not get the text of the summary, only the compaction item and the token usage. Antiphon reports the token usage of
each model call once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import msgspec

from antiphon.engine.exchange.answer_readers import AnswerReader, BodyReader, ChatBodyReader, StreamReader
from antiphon.engine.exchange.failure import refusal, transport_failure
from antiphon.engine.exchange.loaded_request import LoadedRequest
from antiphon.engine.exchange.parsed_request import ParsedRequest
from antiphon.engine.exchange.phase import COMPACT_PATH, ExchangeCore, Phase, refused_for, whose
from antiphon.engine.exchange.requested_tools import hosted_tools
from antiphon.engine.exchange.response_end import ResponseEnd
from antiphon.engine.exchange.running_tools import RunningTools
from antiphon.engine.exchange.states import State
from antiphon.engine.exchange.stored_items import item_body
from antiphon.engine.exchange.tool_turns import citations_of
from antiphon.engine.ports.actions import CancelReason, Context, Usage
from antiphon.errors import ApiError
from antiphon.translation.answer.stream import ChatStream
from antiphon.translation.answer.upstream_errors import without_secrets
from antiphon.translation.chat.compaction import ask_for_summary, compaction_payload, expand_compactions, split
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.events.citations import Citations
from antiphon.translation.request.parameters import SHAPING
from antiphon.translation.token_usage import usage_object
from antiphon.translation.tool_map import ToolMap
from antiphon.translation.values import BuilderOptions, ChatTranslation, Ending
from antiphon.types.items import InputItem, Message, OutputText
from antiphon.types.transport import Headers, UpstreamError, header_value

_NOT_OVER: Final = Ending("in_progress")


class ModelTurn(Phase, ABC):
    """Base class of the phases that call the model, once or several times. `builder` receives the model's output and
    builds the response."""

    def __init__(self, end: ResponseEnd, builder: ResponseBuilder) -> None:
        super().__init__(end.core)
        self.loaded = end.loaded
        self.response_end = end
        self.builder = builder
        # The arguments of the model call that the reader of the answer needs.
        self._tools = ToolMap()
        self._logprobs = False
        self._citations: Citations | None = None
        self._sent: dict[str, str] = {}
        self._refused = BodyReader(0)
        self._size_before = 0
        self._untold = False
        """Whether the token usage of the last model call is still unreported."""

    @abstractmethod
    def ended(self, ending: Ending) -> None:
        """Handle the end of the model's output. The subclass runs tools, calls the model again, or ends the
        response."""

    def ask(
        self,
        chat: ChatTranslation,
        tools: ToolMap,
        *,
        logprobs: bool = False,
        citations: Citations | None = None,
    ) -> None:
        """Call the model. `tools` maps the tool names that the model knows to the request's tools."""
        core = self.core
        core.phase = self
        self._tools, self._logprobs, self._citations, self._sent = tools, logprobs, citations, chat.sent
        self._size_before, self._untold = self.builder.draft.size, True
        core.ask_upstream("/chat/completions", chat.body, stream=core.known.streaming)
        if self.loaded.in_background:
            # The server answered the HTTP request when it queued the job. A later failure can only fail the response.
            if core.known.streaming:
                core.answer.open_stream(self.loaded.builder)
            core.answer.head_sent = True

    def receive_head(self, status: int, headers: Headers) -> None:
        core = self.core
        limits = core.options.limits
        core.answer.upstream = without_secrets(headers, core.secrets)
        if not 200 <= status < 300:
            self._refused = core.call.reader = BodyReader(limits.upstream_error_bytes)
            core.machine.go(State.REFUSED)
            return
        chat = ChatStream(
            self.builder,
            self.loaded.profile,
            tools=self._tools,
            logprobs=self._logprobs,
            citations=self._citations,
            event_limit=limits.sse_event_bytes,
            idle_limit=limits.no_output_bytes,
            secrets=core.secrets,
            max_calls=limits.tool_calls,
        )
        if "text/event-stream" in (header_value(headers, "content-type") or "").lower():
            core.call.reader = StreamReader(chat, self.loaded.builder, core.actions)
            core.machine.go(State.STREAMING)
            if core.known.streaming:
                core.answer.open_stream(self.loaded.builder)
        else:
            # The answer is one JSON body (even if the call requested a stream), or the answer is invalid. The reader
            # checks the body when it is complete.
            core.call.reader = ChatBodyReader(chat, self.loaded.builder, limits.upstream_body_bytes)
            core.machine.go(State.COLLECTING)

    def stop_reading(self) -> None:
        state = self.core.machine.state
        if state is State.STREAMING:
            self._over(None)
        elif state is State.REFUSED:
            self._end_refused()
        else:
            self._over(Ending("failed", code="upstream_too_large", message="The upstream's answer is too large."))

    def receive_end(self, error: UpstreamError | None) -> None:
        core = self.core
        state = core.machine.state
        if state is State.CALLING:
            self.fail(transport_failure(error))
        elif state is State.REFUSED:
            self._end_refused()
        elif error is None:
            core.call.reader.read_whole()
            self._over(None)
        else:
            mapped = transport_failure(error)
            core.note_failure(whose(refusal(mapped, state, core.upstream_name), error))
            self._over(Ending("failed", code=mapped.code or "server_error", message=mapped.message))

    def _end_refused(self) -> None:
        """Fail the request with the upstream's error, when the body of that error is complete or too large."""
        core = self.core
        error = core.refused_upstream(self._refused.body, self._sent)
        if not core.call.status:
            # A proxy answered instead of the upstream. Only the log line names this proxy.
            core.note_failure(core.failure_of(error))
        self.fail(error)

    def cancel(self, reason: CancelReason, message: str) -> None:
        self.response_end.fall_silent(reason)
        self.end(Ending("failed", code="server_error", message=message))

    def end(self, cut: Ending) -> None:
        self._over(cut)

    def break_off(self) -> None:
        self.builder.draft.mute()
        self.core.call.reader.end(_NOT_OVER)
        self._tell_usage()

    def _over(self, cut: Ending | None) -> None:
        """End the model's output, and report the call's token usage to the observer. `cut` is the reason why the output
        is incomplete, or None for a complete output."""
        call = self.core.call
        ending = call.reader.end(cut)
        if self.core.cancelled and cut is not None:
            ending = cut
        call.reader = AnswerReader()
        self._tell_usage()
        self.ended(ending)

    def _tell_usage(self) -> None:
        """Report the token usage of the last model call to the observer.

        An upstream returns token counts at the end of its answer, and some upstreams return no counts. If a call has no
        counts, the sidecar estimates the tokens from the size of the request and of the output.
        """
        call, used = self.core.call, self.builder.response.usage
        if not self._untold:
            # The turn reported the usage when the call ended. A response can also end between two calls.
            return
        self._untold = False
        if used is not None:
            self.core.observer.call_used(Usage.of(used))
        elif 200 <= call.status < 300:
            estimated = Usage.estimated(call.size, self.builder.draft.size - self._size_before)
            self.core.observer.call_used(estimated, estimated=True)


class AnswerTurn(ModelTurn):
    """The phase in which the model answers. Between two model calls, `tools` runs the tools that the model called. The
    model's output becomes part of the client's response."""

    def __init__(self, end: ResponseEnd, tools: RunningTools) -> None:
        super().__init__(end, end.builder)
        self._between = tools

    def begin(self, chat: ChatTranslation) -> None:
        """Call the model with the translated request."""
        loaded = self.loaded
        self.response_end.compare(chat)
        citations = citations_of(self.response_end.turns, loaded.items)
        self.ask(chat, chat.tools, logprobs=loaded.request.logprobs, citations=citations)

    def ended(self, ending: Ending) -> None:
        if ending.status != "completed" or self.core.cancelled or not self._between.go_on():
            self.response_end.conclude(ending)


class MadeResponse(Phase):
    """The first phase of a response that the sidecar makes with a chat model. This phase loads the request's stored
    objects, and then starts the other phases."""

    def __init__(self, core: ExchangeCore, parsed: ParsedRequest) -> None:
        super().__init__(core)
        request, known = parsed.request, core.known
        compacts = parsed.path == COMPACT_PATH
        self._loaded = loaded = LoadedRequest(
            core, parsed, self._proceed, answers_approvals=not compacts, compares=not compacts
        )
        self._end = ResponseEnd(loaded)
        self._tools = RunningTools(self._end, prepared=self._proceed, ran=self._go_on)
        self._answer = AnswerTurn(self._end, self._tools)
        known.makes_response = parsed.delivery.generate and not compacts
        hosted = hosted_tools(request, core.options.tool_types)
        known.needs_drive = compacts or request.compact_threshold is not None or request.background or bool(hosted)

    def begin(self) -> None:
        """Load the objects to which the request refers. If the request refers to no object, continue immediately.
        Raises `ApiError`."""
        self._loaded.begin()

    def receive_context(self, context: Context) -> None:
        self._loaded.receive_context(context)

    def end(self, cut: Ending) -> None:
        self._end.conclude(cut)

    def _proceed(self) -> None:
        """Call the model, unless a compaction or the preparation of tools must happen first. In that case, begin that
        phase. Raises `ApiError`."""
        loaded = self._loaded
        self.core.phase = self
        if loaded.needs_compaction and CompactionTurn(self._end, self._proceed).begin():
            return
        if self._tools.begin():
            return
        chat = loaded.translate(loaded.request, loaded.items)
        if chat is None:
            return
        loaded.name_ignored(chat)
        loaded.prepare_stored()
        if loaded.delivery.generate:
            self._answer.begin(chat)
        else:
            # The client requests no output. The response ends without output, and later requests can continue the
            # response.
            self._end.compare(chat)
            loaded.builder.response.usage = usage_object(0, 0, 0, 0, 0, 0)
            self._end.conclude(Ending("completed"))

    def _go_on(self) -> None:
        """Call the model again, with the results of its tool calls. Raises `ApiError`."""
        self.core.phase = self
        chat = self._loaded.translate(self._loaded.request, self._loaded.items)
        if chat is not None:
            self._answer.begin(chat)


class CompactionTurn(ModelTurn):
    """The phase in which the model summarizes the conversation. After the compaction, this phase calls `proceed`.

    The model's output goes to a separate builder, so that the client does not get the text of the summary.
    """

    def __init__(self, end: ResponseEnd, proceed: Callable[[], None]) -> None:
        core, loaded = end.core, end.loaded
        response = msgspec.structs.replace(end.builder.response)
        limit = core.options.limits.upstream_body_bytes
        super().__init__(end, ResponseBuilder(response, BuilderOptions(events=False, max_bytes=limit), core.new_id))
        self._proceed = proceed
        self._covers = not loaded.request.compact
        self._summed, kept = split(loaded.items, latest=self._covers)
        self._kept = [item_body(item) for item in kept]

    def begin(self) -> bool:
        """Let the model summarize the conversation. If the conversation has files, Antiphon may fetch the files first.

        Returns False when there is nothing to summarize, unless the client itself requested the compaction. Raises
        `ApiError`.
        """
        loaded, request = self.loaded, self.loaded.request
        if self._covers and all(item.role in ("system", "developer") for _, item in self._summed):
            return False
        plain = msgspec.structs.replace(
            request,
            tools=(),
            tool_choice=None,
            parallel_tool_calls=None,
            text=None,
            max_output_tokens=None,
            logprobs=False,
            top_logprobs=None,
            parameters={name: value for name, value in request.parameters.items() if name not in SHAPING},
            # If the conversation exceeds the model's context, the model summarizes only the latest part.
            truncation="auto",
        )
        chat = loaded.translate(plain, [*self._summed, ask_for_summary()])
        if chat is not None:
            self.core.answer.ignored = (*request.ignored, *request.unknown.names)
            loaded.prepare_stored()
            self.ask(chat, ToolMap())
        return True

    def ended(self, ending: Ending) -> None:
        core, loaded, end = self.core, self.loaded, self.response_end
        core.known.spent = self.builder.response.usage
        if ending.status == "failed" or core.cancelled:
            end.conclude(ending)
            return
        text = b"".join(_text_of(item) for item in self.builder.draft.output if isinstance(item, Message))
        if not text:
            end.conclude(Ending("failed", code="model_error", message="The model gave no summary of the conversation."))
            return
        sealed = loaded.seal(compaction_payload(text, self._kept, covers=self._covers))
        end.builder.compaction(sealed)
        core.observer.compacted()
        if not self._covers:
            end.builder.response.service_tier = self.builder.response.service_tier
            end.conclude(Ending("completed"))
            return
        if core.answer.head_sent:
            core.answer.events(end.builder)
        compaction = InputItem(type="compaction", encrypted_content=sealed)
        try:
            loaded.items = expand_compactions([*loaded.items, ("input", compaction)], loaded.unseal)
            loaded.compacted = True
            self._proceed()
        except (ApiError, RecursionError) as error:
            core.phase.reject(refused_for(error))


def _text_of(item: Message) -> bytes:
    """Return a message's text, escaped as in a JSON string but without the quotes."""
    return b"".join(bytes(part.text)[1:-1] for part in item.content if isinstance(part, OutputText))
