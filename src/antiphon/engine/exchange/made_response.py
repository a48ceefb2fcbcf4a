"""A response that is made here: which of its phases comes next.

Lives here: the order of loading, compaction, tools and answer, and the turns in which the model answers. Not here: what
is loaded (`loaded_request.py`), the other phases (`compaction_turn.py`, `running_tools.py`, `response_end.py`), how the
model is called (`model_turn.py`), which input may come when (`states.py`).

Invariant: a conversation is compacted before tools are prepared for it, and both before the model answers.
"""

from __future__ import annotations

from antiphon.engine.exchange.asked import Asked
from antiphon.engine.exchange.compaction_turn import CompactionTurn
from antiphon.engine.exchange.declared_tools import hosted_tools
from antiphon.engine.exchange.loaded_request import LoadedRequest
from antiphon.engine.exchange.model_turn import ModelTurn
from antiphon.engine.exchange.options import COMPACT_PATH
from antiphon.engine.exchange.phase import ExchangeCore, Phase
from antiphon.engine.exchange.response_end import ResponseEnd
from antiphon.engine.exchange.running_tools import RunningTools
from antiphon.engine.exchange.tool_turns import citations_of
from antiphon.engine.ports.actions import Context
from antiphon.translation.usage import usage_object
from antiphon.translation.values import ChatTranslation, Ending


class AnswerTurn(ModelTurn):
    """The turns of one response in which the model answers; `tools` run between them. The builder of the model's words
    is the client's."""

    def __init__(self, end: ResponseEnd, tools: RunningTools) -> None:
        super().__init__(end, end.builder)
        self._between = tools

    def begin(self, chat: ChatTranslation) -> None:
        """Ask the model."""
        loaded = self.loaded
        citations = citations_of(self.response_end.turns, loaded.items)
        self.ask(chat, chat.tools, logprobs=loaded.request.logprobs, citations=citations)

    def ended(self, ending: Ending) -> None:
        if ending.status != "completed" or self.core.cancelled or not self._between.go_on():
            self.response_end.conclude(ending)


class MadeResponse(Phase):
    """One such response. It is a phase itself while what the request refers to is loaded."""

    def __init__(self, core: ExchangeCore, asked: Asked) -> None:
        super().__init__(core)
        request, known = asked.request, core.known
        compacts = asked.path == COMPACT_PATH
        self._loaded = loaded = LoadedRequest(core, asked, self._proceed, answers_approvals=not compacts)
        self._end = ResponseEnd(loaded)
        self._tools = RunningTools(self._end, prepared=self._proceed, ran=self._go_on)
        self._answer = AnswerTurn(self._end, self._tools)
        known.makes_response = asked.wishes.generate and not compacts
        hosted = hosted_tools(request, core.options.tool_types)
        known.needs_drive = compacts or request.compact_threshold is not None or request.background or bool(hosted)

    def begin(self) -> None:
        """Ask for what the request refers to, or go on without. Raises `ApiError`."""
        self._loaded.begin()

    def receive_context(self, context: Context) -> None:
        self._loaded.receive_context(context)

    def end(self, cut: Ending) -> None:
        self._end.conclude(cut)

    def _proceed(self) -> None:
        """Call the model, or have done first what must come before that. Raises `ApiError`."""
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
        if loaded.wishes.generate:
            self._answer.begin(chat)
        else:
            # An answer without output, which later requests can continue.
            loaded.builder.response.usage = usage_object(0, 0, 0, 0, 0, 0)
            self._end.conclude(Ending("completed"))

    def _go_on(self) -> None:
        """Call the model again, with what its calls have found. Raises `ApiError`."""
        self.core.phase = self
        chat = self._loaded.translate(self._loaded.request, self._loaded.items)
        if chat is not None:
            self._answer.begin(chat)
