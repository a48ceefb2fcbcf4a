"""Sequences the phases of a response: loading, compaction, tools, model turns, end.

Lives here: the order of the phases, the turns in which the model answers, and the turn in which the model summarizes
the conversation. The summary comes before the answer or replaces the answer.
Not here:

- loading objects, and the condition for a compaction (`loaded_request.py`)
- the other phases (`running_tools.py`, `response_end.py`)
- the format of a compaction (`translation/chat/compaction.py`)
- the model call (`model_turn.py`)
- the input that each state allows (`states.py`)

Invariants: Antiphon first compacts the conversation, then prepares the tools, then lets the model answer. From the
summarizing turn, the client gets only the compaction and its token usage.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from antiphon.engine.exchange.declared_tools import hosted_tools
from antiphon.engine.exchange.loaded_request import LoadedRequest
from antiphon.engine.exchange.model_turn import ModelTurn
from antiphon.engine.exchange.options import COMPACT_PATH
from antiphon.engine.exchange.parsed_request import ParsedRequest
from antiphon.engine.exchange.phase import ExchangeCore, Phase, refused_for
from antiphon.engine.exchange.response_end import ResponseEnd
from antiphon.engine.exchange.running_tools import RunningTools
from antiphon.engine.exchange.stored_items import item_body
from antiphon.engine.exchange.tool_turns import citations_of
from antiphon.engine.ports.actions import Context
from antiphon.errors import ApiError
from antiphon.translation.chat.compaction import ask_for_summary, compaction_payload, expand_compactions, split
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.request.parameters import SHAPING
from antiphon.translation.token_usage import usage_object
from antiphon.translation.tool_map import ToolMap
from antiphon.translation.values import BuilderOptions, ChatTranslation, Ending
from antiphon.types.items import InputItem, Message, OutputText


class AnswerTurn(ModelTurn):
    """The turns of one response in which the model answers. Between two turns, `tools` runs the model's tool calls. The
    builder of the client's response takes the model's output."""

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
    """A response that the sidecar makes with a chat model. This phase is active while the request's objects load."""

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
        """Load the objects that the request refers to. If there are none, continue immediately. Raises `ApiError`."""
        self._loaded.begin()

    def receive_context(self, context: Context) -> None:
        self._loaded.receive_context(context)

    def end(self, cut: Ending) -> None:
        self._end.conclude(cut)

    def _proceed(self) -> None:
        """Call the model, or begin the phase that must run before the model call. Raises `ApiError`."""
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
    """The turn in which the model summarizes the conversation. The turn calls `proceed` when the conversation is
    compacted.

    A separate builder takes the model's output, so that the client does not get the summary's text.
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
        """Let the model summarize the conversation. If the conversation has files, Antiphon may fetch them first.

        Returns False when there is nothing to summarize. A client that requests a compaction always gets a compaction.
        Raises `ApiError`.
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
    """A message's text, escaped as in a JSON string but without the quotes."""
    return b"".join(bytes(part.text)[1:-1] for part in item.content if isinstance(part, OutputText))
